"""Helpers for tests of the routes: plain requests, and jobs whose state does not change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import requests

from girder_dask.protocol.messages import Submission
from girder_dask.protocol.payload import pack_call
from girder_dask.protocol.wire_json import to_json


def ask(
    stack: Any, method: str, path: str, *, by: Any = None, token: str | None = None, **options: Any
) -> Any:
    """Send a request, ``by`` a user or a ``GirderClient``, or with a token."""
    if by is not None:
        token = getattr(by, "client", by).token
    headers = {"Girder-Token": token} if token else {}
    headers.update(options.pop("headers", {}))
    return requests.request(method, f"{stack.api}/{path}", headers=headers, timeout=30, **options)


def call(task: str = "my_worker_tasks:my_task", *args: Any, **fields: Any) -> dict[str, Any]:
    """Return a call of a task as it travels to Girder; ``payload=`` replaces the plain one."""
    fields.setdefault("payload", pack_call(args, {}))
    fields.setdefault("title", "From outside")
    return to_json(Submission(task=task, **fields).to_wire())


def submit(stack: Any, *calls: dict[str, Any], group: Any = None, **who: Any) -> Any:
    """Send calls to Girder."""
    body = {"submissions": list(calls), "group": group}
    return ask(stack, "POST", "dask/job", json=body, **who)


def start_waiting(title: str = "Waits") -> dict[str, str]:
    """Record a job that stays QUEUED, since no worker has its resources. Run it in Girder."""
    from girder.api.rest import getCurrentUser

    from girder_dask.plugin.store import recording

    waiting = Submission(
        "my_worker_tasks:noop", pack_call((), {}), title=title, resources={"nowhere": 1}
    )
    (recorded,) = recording.record([waiting], getCurrentUser())
    return {"id": recorded.spec.id, "token": str(recorded.spec.token)}


@contextlib.contextmanager
def without_claims(stack: Any) -> Iterator[None]:
    """Have no scheduler of a stack claim jobs, so that those of a test stay as it has left them.

    Each of its claims takes over the jobs that another scheduler, such as one that a test plays,
    has begun. Claims that a test itself makes as ``greedy`` are answered.
    """
    stack.call(stop_claims)
    try:
        yield
    finally:
        stack.call(allow_claims)


def stop_claims() -> None:
    """Answer the claims of schedulers with no job. Run it in Girder."""
    from girder_dask.plugin.store import claims

    found: Any = claims
    real = found.real_candidates = claims._candidates
    found._candidates = lambda scheduler, *more: real(scheduler, *more) * (scheduler == "greedy")


def allow_claims() -> None:
    """Answer claims as ever. Run it in Girder."""
    from girder_dask.plugin.store import claims

    found: Any = claims
    found._candidates = found.real_candidates


def set_status(job_id: str, status: int) -> None:
    """Set the state of a job in the database. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"status": int(status)}})


def read(collection: str, query_id: str) -> dict[str, Any] | None:
    """Return a document of ``job`` or ``dask_job``. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.models import DaskJob

    model = {"job": Job, "dask_job": DaskJob}[collection]()
    found = model.collection.find_one({"_id": ObjectId(query_id)})
    return None if found is None else dict(found)


def stored_token(job_id: Any) -> str:
    """Return the token of a job once it is stored, which delay() does not wait for.

    Run it in Girder.
    """
    import time

    from bson import ObjectId
    from girder.models.token import Token

    from girder_dask.plugin.store.models import DaskJob

    record = DaskJob().collection.find_one({"_id": ObjectId(job_id)})
    deadline = time.monotonic() + 30
    while Token().collection.find_one({"_id": record["token"]}) is None:
        assert time.monotonic() < deadline, "the token of the job is not stored"
        time.sleep(0.01)
    return str(record["token"])


def count_jobs(user_id: str) -> int:
    """Return the number of jobs of a user. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    return int(Job().collection.count_documents({"userId": ObjectId(user_id)}))
