"""Messages run by Celery's own tracer, in this process and without Girder."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from girder_dask.celery import message_body
from girder_dask.celery.runner import run_message
from girder_dask.client.backend import use_backend
from girder_dask.errors import ArgumentError, JobCanceled, TaskNotFoundError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.celery_message import CeleryJob, CeleryMessage
from girder_dask.protocol.messages import StoredResult
from girder_dask.tasks import running_job
from girder_dask.tasks.running_job import JobManager, Request, RetryRequested, RunningJob
from girder_dask.worker.interruption.soft_time_limit import soft_time_limit


class Backend:
    """A backend that keeps the messages of the run."""

    def __init__(self) -> None:
        self.sent: list[tuple[CeleryMessage, CeleryJob | None]] = []
        self.celery_messages = self

    def send(self, message: CeleryMessage, job: CeleryJob | None, _call: str) -> None:
        self.sent.append((message, job))

    def control(self, _method: str, _arguments: Any) -> dict[str, Any]:
        return {}

    def result(self, _task_id: str) -> StoredResult | None:
        return None


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    manager = JobManager(status=JobStatus.RUNNING)
    job = RunningJob(
        id="5" * 24,
        job_manager=manager,
        request=Request(id="5" * 24, hostname="host", girder_api_url="http://girder/api/v1"),
    )
    token = running_job.current.set(job)
    with use_backend(backend):  # type: ignore[arg-type]
        yield backend
    running_job.current.reset(token)


def message(task: str, *args: Any, embed: Any = None, **headers: Any) -> CeleryMessage:
    body = json.dumps([{"py/tuple": list(args)}, {}, embed or {}]).encode()
    return CeleryMessage(
        id="task-1",
        task=f"their_tasks.tasks.{task}",
        queue="celery",
        body=base64.b64encode(body).decode(),
        body_encoding="base64",
        headers={"id": "task-1", "task": f"their_tasks.tasks.{task}", "lang": "py", **headers},
        properties={"delivery_info": {"exchange": "", "routing_key": "celery"}},
    )


def run(sent: CeleryMessage, *, trusted: bool = True, **options: Any) -> Any:
    return run_message(sent, "their_tasks 1.0.0", trusted=trusted, **options)


@pytest.mark.usefixtures("backend")
def test_a_value_is_returned_and_an_exception_raised() -> None:
    assert run(message("add", 1, 2)) == 3
    with pytest.raises(RuntimeError, match="oh") as error:
        run(message("fails", "oh"))
    names = [entry.name for entry in error.traceback]
    assert names[-1] == "fails"
    assert "trace_task" not in names


@pytest.mark.usefixtures("backend")
def test_a_bound_task_has_its_job() -> None:
    value = run(message("request_of"))
    assert value == {
        "reference": "5" * 24,
        "has_token": False,
        "api_url": "http://girder/api/v1",
        "hostname": "dask@host",
        "retries": 0,
    }


def test_a_chain_sends_its_next_call(backend: Backend) -> None:
    following = {"task": "their_tasks.tasks.add", "args": [10], "kwargs": {}, "options": {}}
    assert run(message("add", 1, 2, embed={"chain": [{**following, "subtask_type": None}]})) == 3
    ((sent, job),) = backend.sent
    assert sent.task == "their_tasks.tasks.add"
    assert message_body.arguments(sent) == [[3, 10], {}]
    assert job is not None
    assert job.title == "<unnamed job>"
    assert not {"girder_dask_run", "jobInfoSpec", "girder_client_token"} & sent.headers.keys()


@pytest.mark.usefixtures("backend")
def test_request_has_nothing_that_celery_believes_of_a_sender() -> None:
    embed = {"girder_result_hooks": [{"py/object": "v.Victim"}], "id": "evil"}
    sent = message("whole_request", embed=embed)
    info = {"is_eager": True, "exchange": "", "routing_key": "celery", "more": [1]}
    headers = {**sent.headers, "id": "evil", "task": "evil"}
    sent = replace(sent, headers=headers, properties={"delivery_info": info})
    told = run(sent)
    assert (told["id"], told["task"]) == ("task-1", "their_tasks.tasks.whole_request")
    assert told["hooks"] is None
    assert told["delivery_info"] == {
        "exchange": "",
        "routing_key": "celery",
        "priority": None,
        "redelivered": False,
    }


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord"])
def test_calls_in_headers_are_not_sent(backend: Backend, name: str) -> None:
    following = {"task": "their_tasks.tasks.add", "args": [10], "kwargs": {}, "options": {}}
    assert run(message("add", 1, 2, **{name: [following]})) == 3
    with pytest.raises(RuntimeError, match="oh"):
        run(message("fails", "oh", **{name: [following]}))
    assert backend.sent == []


def test_a_retry_is_requested_and_sends_nothing(backend: Backend) -> None:
    first = message("tries_again", 2, 30.0)
    with pytest.raises(RetryRequested) as request:
        run(first)
    assert 25 < request.value.not_before - time.time() <= 31
    with pytest.raises(RetryRequested) as second:
        run(first, note=request.value.note)
    assert run(first, note=second.value.note) == 2
    assert backend.sent == []


@pytest.mark.usefixtures("backend")
def test_a_retry_gives_up_with_the_reason() -> None:
    with pytest.raises(RetryRequested) as request:
        run(message("gives_up"))
    with pytest.raises(ValueError, match="out of reach"):
        run(message("gives_up"), note=request.value.note)


def test_a_replacement_is_sent_with_the_id_of_the_task(backend: Backend) -> None:
    assert run(message("is_replaced", 1)) is None
    ((sent, _),) = backend.sent
    assert (sent.id, sent.task) == ("task-1", "their_tasks.tasks.add")


def test_child_tasks_are_sent_with_the_fields_of_their_jobs(backend: Backend) -> None:
    run(message("starts_child", 4))
    ((sent, job),) = backend.sent
    assert sent.task == "their_tasks.tasks.fibonacci"
    assert job == CeleryJob(
        title="The child",
        type="children",
        public=True,
        other_fields={"meta": {"of": "tests"}},
        args=[4],
    )


@pytest.mark.usefixtures("backend")
def test_a_message_that_has_expired_is_canceled() -> None:
    with pytest.raises(JobCanceled, match="it was to begin before 2020"):
        run(message("add", 1, 2, expires="2020-01-01T00:00:00+00:00"))


@pytest.mark.usefixtures("backend")
def test_the_soft_time_limit_is_an_exception_in_the_task() -> None:
    sent = message("softly_limited", timelimit=[None, 0.3])
    began = time.monotonic()
    assert run(sent, soft_time_limit=soft_time_limit) == "cleaned up"
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("backend")
def test_an_unknown_task_names_its_package() -> None:
    with pytest.raises(TaskNotFoundError, match=r"pip install 'their_tasks==1\.0\.0'"):
        run(message("missing"))


@pytest.mark.usefixtures("backend")
def test_an_untrusted_message_is_opened_only_if_it_is_data() -> None:
    assert run(message("add", 1, 2), trusted=False) == 3
    scale = {"py/object": "their_tasks.tasks.Scale", "factor": 5}
    assert run(message("scaled", 2, scale)) == 10
    with pytest.raises(ArgumentError, match="may run code when it is opened"):
        run(message("scaled", 2, scale), trusted=False)


@pytest.mark.parametrize(
    ("status", "error"),
    [(JobStatus.ERROR, "set its job to ERROR"), (JobStatus.CANCELED, "The job was canceled")],
)
@pytest.mark.usefixtures("backend")
def test_a_task_may_end_its_own_job(status: JobStatus, error: str) -> None:
    with pytest.raises(Exception, match=error):
        run(message("ends_job", int(status)))


@pytest.mark.parametrize("path", ["/data/id", '"py/id"'])
def test_a_task_does_not_change_what_the_calls_after_it_get(backend: Backend, path: str) -> None:
    label = {"py/dask-shared": 1, "value": [path]}
    args = [{"py/dask-same": 1}]
    following = {"task": "their_tasks.tasks.add", "args": args, "kwargs": {}, "options": {}}
    run(message("empties", label, embed={"chain": [{**following, "subtask_type": None}]}))
    ((sent, _),) = backend.sent
    assert message_body.arguments(sent) == [[1, [path]], {}]
