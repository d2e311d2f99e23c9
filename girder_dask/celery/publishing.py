"""Publication of messages: the fields of their jobs, and what must not travel in them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import jsonpickle.handlers
from celery import Signature
from celery.signals import before_task_publish
from girder_client import GirderClient
from girder_worker.app import app as worker_app
from girder_worker.app import girder_before_task_publish
from girder_worker.task import Task
from girder_worker.utils import _maybe_model_repr, _walk_obj, is_builtin_celery_task
from msgspec.structs import replace

from girder_dask.celery import APP_URL, message_body, serializer
from girder_dask.celery.run_state import RUN_HEADER, TOKEN_HEADER, current_run
from girder_dask.client.backend import get_backend, in_run
from girder_dask.protocol.celery_message import CeleryJob, CeleryMessage
from girder_dask.protocol.display import readable
from girder_dask.tasks.running_job import current_job

__all__ = ["install", "publish", "take_spent_tokens", "warm_up"]

# The header that carries the fields of the job as far as the transport of this process.
_JOB_HEADER = "girder_dask_job"

# Headers that do not travel: tokens, addresses, and texts that may contain either.
_LOCAL_HEADERS = (
    _JOB_HEADER,
    *(TOKEN_HEADER, "girder_api_url", "apiUrl"),
    *("argsrepr", "kwargsrepr"),
)

_local = threading.local()


def install(app: Any) -> None:
    """Have an app send its messages through this package, which makes their jobs."""
    serializer.install()
    # Also tasks of Celery itself, such as the poll of a chord, have objects among their arguments.
    app.conf.update(broker_url=APP_URL, result_backend=APP_URL, task_serializer=serializer.NAME)
    before_task_publish.disconnect(girder_before_task_publish)
    before_task_publish.connect(_before_publish, weak=False)
    jsonpickle.handlers.register(GirderClient, _GirderClientHandler, base=True)
    jsonpickle.handlers.register(Signature, _SignatureHandler, base=True)


def warm_up(app: Any) -> None:
    """Load what the first message of a process would wait for."""
    app.finalize()
    for name in ("amqp", "backend", "events"):
        getattr(app, name)


def _before_publish(
    sender: str, body: Any, headers: dict[str, Any], **_: Any
) -> None:  # Celery passes all by name
    """Collect the fields of the job of a message, and remove them from its headers."""
    _local.tokens = set()
    if not (
        is_builtin_celery_task(sender)
        or "jobInfoSpec" in headers
        or headers.get("girder_job_disable")
    ):
        headers[_JOB_HEADER] = _job_of(sender, body, headers)
    if "girder_result_hooks" in headers:
        hooks = headers["girder_result_hooks"]
        headers["girder_result_hooks"] = [serializer.flatten(hook) for hook in hooks]
    for name in Task.reserved_options:
        headers.pop(name, None)


def _job_of(sender: str, body: Any, headers: Mapping[str, Any]) -> CeleryJob:
    task = worker_app.tasks.get(sender)
    defaults = (task if isinstance(task, Task) else Task).girder_job_defaults()
    given = {**defaults, **headers}
    args, kwargs = (_walk_obj(part, _maybe_model_repr) for part in (list(body[0]), dict(body[1])))
    if in_run():  # they travel
        args, kwargs = readable(args), readable(kwargs)
    return CeleryJob(
        title=str(given["girder_job_title"] or sender),
        type=str(given["girder_job_type"] or "celery"),
        public=bool(given["girder_job_public"]),
        other_fields=dict(given["girder_job_other_fields"] or {}),
        args=args,
        kwargs=kwargs,
        user=headers.get("girder_user"),
        token=headers.get(TOKEN_HEADER),
    )


class _GirderClientHandler(jsonpickle.handlers.BaseHandler):
    """Handler of the clients that transforms hold: their tokens and addresses do not travel.

    Where the transform runs, it gets the client of the job.
    """

    def flatten(self, obj: Any, data: dict[str, Any]) -> dict[str, Any]:
        """Return a placeholder, and keep the token for :func:`take_spent_tokens`."""
        if isinstance(obj.token, str) and obj.token:
            _tokens().add(obj.token)
        data["py/object"] = "girder_client.GirderClient"
        return data

    def restore(self, data: Any) -> Any:  # noqa: ARG002 - it holds nothing
        """Return the client of the running job."""
        return current_job().girder_client


class _SignatureHandler(jsonpickle.handlers.BaseHandler):
    """Handler of the calls that follow: they travel as data, which Celery takes as well."""

    def flatten(self, obj: Any, data: dict[str, Any]) -> Any:  # noqa: ARG002 - with their class
        """Return the call as a plain mapping."""
        # The values alone: a mapping of their own would count among the objects that references
        # are numbered by, and the worker sees one object.
        return {name: self.context.flatten(value, reset=False) for name, value in obj.items()}


def _tokens() -> set[str]:
    if not hasattr(_local, "tokens"):
        _local.tokens = set()
    tokens: set[str] = _local.tokens
    return tokens


def take_spent_tokens() -> set[str]:
    """Return the tokens of the transforms in the message that this thread publishes.

    Jobs do not use them, so those that were made for the transforms can be deleted.
    """
    tokens, _local.tokens = _tokens(), set()
    return tokens


def publish(queue: str, message: Mapping[str, Any]) -> None:
    """Send a message of kombu to the backend of this process or run."""
    headers = dict(message["headers"])
    job = headers.get(_JOB_HEADER)
    is_anonymous = headers.get(TOKEN_HEADER) == ""
    for name in _LOCAL_HEADERS:
        headers.pop(name, None)
    if is_anonymous:
        headers[TOKEN_HEADER] = ""
    properties = dict(message["properties"])
    body = message["body"]
    sent = CeleryMessage(
        id=str(headers["id"]),
        task=str(headers["task"]),
        queue=queue,
        body=body.decode("latin-1") if isinstance(body, bytes) else body,
        body_encoding=properties.pop("body_encoding", None),
        content_type=message["content-type"],
        content_encoding=message["content-encoding"],
        headers=headers,
        properties={
            name: properties[name]
            for name in ("priority", "reply_to", "correlation_id", "delivery_info")
            if properties.get(name) is not None
        },
    )
    run = current_run()
    if run is not None:
        if run.keeps(sent):
            return
        # Such headers are copies of those of the running task.
        rest = {name: headers[name] for name in headers.keys() - {RUN_HEADER, "jobInfoSpec"}}
        sent = replace(sent, headers=rest)
    call = message_body.message_text(sent) if in_run() else ""
    earlier = get_backend().celery_messages.send(sent, job, call)
    if earlier is not None:
        current_job().job_manager.write(
            f"{sent.task} is not started: an earlier run of this job has started another call with "
            f"the same id {sent.id}, as job {earlier}, and that call counts.\n"
        )
