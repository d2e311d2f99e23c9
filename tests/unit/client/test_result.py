"""A job as the one who started it sees it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from girder_dask import JobCanceled, JobFailed, JobResult, NotConnectedError
from girder_dask.errors import GirderError, ResultUnavailable
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import StoredResult
from girder_dask.protocol.payload import pack_value
from tests.support.recording_backend import RecordingBackend

S = JobStatus


def job(backend: RecordingBackend, status: JobStatus = S.QUEUED, **fields: object) -> JobResult:
    backend.jobs["a"] = {"_id": "a", "title": "Count", "status": int(status), **fields}
    return JobResult(dict(backend.jobs["a"]))


def test_it_is_indexed_like_the_job_document(backend: RecordingBackend) -> None:
    result = job(backend)
    assert result["title"] == result.job["title"] == "Count"
    assert "title" in result
    assert "colour" not in result
    with pytest.raises(KeyError):
        result["colour"]
    assert backend.loads == 0


def test_of_an_id_alone_the_document_is_asked_for_once(backend: RecordingBackend) -> None:
    job(backend)
    result = JobResult("a")
    assert (result.id, result.task_id, backend.loads) == ("a", "a", 0)
    assert repr(result) == "<JobResult a>"
    assert result["title"] == "Count"
    assert result["status"] == S.QUEUED
    assert backend.loads == 1
    assert repr(result) == "<JobResult a 'Count' QUEUED>"


def test_waits_for_is_asked_for_now(backend: RecordingBackend) -> None:
    result = job(backend)
    assert result.waits_for == ""
    backend.jobs["a"]["dask"] = {"waits": "no worker is there"}
    assert result.waits_for == "no worker is there"
    backend.jobs["a"]["status"] = int(S.RUNNING)
    assert result.waits_for == ""


def test_it_says_why_the_job_waits(backend: RecordingBackend) -> None:
    result = job(backend, dask={"task": "m:count", "waits": "no worker is there"})
    told = "<JobResult a 'Count' QUEUED, waiting: no worker is there>"
    assert repr(result) == told
    with pytest.raises(TimeoutError, match="QUEUED, waiting: no worker is there after"):
        result.wait(0)
    # Of what is asked for the state of, the rest of the document is still known.
    backend.jobs["a"]["dask"] = {"waits": None}
    assert not result.ready()
    assert repr(result) == "<JobResult a 'Count' QUEUED>"
    assert result["dask"]["task"] == "m:count"


def test_results_of_the_same_job_are_equal(backend: RecordingBackend) -> None:
    assert job(backend) == JobResult("a")
    assert JobResult("a") != JobResult("b")
    assert JobResult("a") != "a"
    assert len({job(backend), JobResult("a")}) == 1


def test_the_status_is_asked_for_until_the_job_has_ended(backend: RecordingBackend) -> None:
    result = job(backend)
    backend.jobs["a"]["status"] = int(S.RUNNING)
    assert (result.status, result.state, result.ready()) == (S.RUNNING, "RUNNING", False)
    backend.jobs["a"]["status"] = int(S.SUCCESS)
    assert result.status is S.SUCCESS
    loads = backend.loads
    assert result.status is S.SUCCESS
    assert backend.loads == loads


@pytest.mark.parametrize("status", list(S))
def test_what_a_status_means(backend: RecordingBackend, status: JobStatus) -> None:
    result = job(backend, status)
    assert result.ready() == (status in FINAL)
    assert result.successful() == (status == S.SUCCESS)
    assert result.failed() == (status == S.ERROR)


@pytest.mark.parametrize(("stored", "shown"), [(["a", "b"], "ab"), ("ab", "ab"), ([], "")])
def test_the_log_is_one_text(backend: RecordingBackend, stored: object, shown: str) -> None:
    assert job(backend, log=stored).log() == shown


def test_a_job_without_a_log_has_an_empty_one(backend: RecordingBackend) -> None:
    assert job(backend).log() == ""
    assert job(backend, log=None).log() == ""


def test_the_value_is_the_one_that_the_function_returned(backend: RecordingBackend) -> None:
    backend.results["a"] = StoredResult(value=pack_value({"coins": 24}))
    assert job(backend, S.SUCCESS).get() == {"coins": 24}


def test_none_is_a_value(backend: RecordingBackend) -> None:
    backend.results["a"] = StoredResult(value=pack_value(None))
    assert job(backend, S.SUCCESS).get() is None


class Opens:
    """Something that runs code when it is opened."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os.no_such_name", "AttributeError: module 'os' has no attribute"),
        ("int('x')", "ValueError: invalid literal"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_value_that_cannot_be_opened_here_says_why(
    backend: RecordingBackend, code: str, said: str
) -> None:
    backend.trusted = {"a"}
    backend.results["a"] = StoredResult(value=pack_value(Opens(code)))
    with pytest.raises(ResultUnavailable, match="value of job a cannot be opened here") as e:
        job(backend, S.SUCCESS).get()
    assert said in str(e.value)
    assert "Install the packages that it needs" in str(e.value)
    assert e.value.job_id == "a"


def test_a_value_that_is_not_kept_says_why(backend: RecordingBackend) -> None:
    backend.results["a"] = StoredResult(error="it takes 2 MB")
    with pytest.raises(
        ResultUnavailable, match="value of job a is unavailable: it takes 2 MB"
    ) as e:
        job(backend, S.SUCCESS).get()
    assert e.value.job_id == "a"


@pytest.mark.parametrize("error", ["ValueError: no coins", None])
def test_a_failed_job_raises_what_is_known(backend: RecordingBackend, error: str | None) -> None:
    backend.results["a"] = StoredResult(error=error)
    with pytest.raises(JobFailed, match=f"Job a failed: {error or 'see its log'}") as caught:
        job(backend, S.ERROR).get()
    assert caught.value.job_id == "a"


def test_a_canceled_job_raises_that(backend: RecordingBackend) -> None:
    with pytest.raises(JobCanceled, match="Job a was canceled") as caught:
        job(backend, S.CANCELED).get()
    assert caught.value.job_id == "a"


def test_waiting_ends_when_the_job_does(backend: RecordingBackend) -> None:
    result = job(backend)
    states = iter([S.QUEUED, S.RUNNING, S.RUNNING, S.SUCCESS])

    def advance() -> None:
        backend.jobs["a"]["status"] = int(next(states, S.SUCCESS))

    backend.before_load = advance
    assert result.wait(20) is result
    assert result["status"] == S.SUCCESS


def test_waiting_has_a_limit_and_the_job_goes_on(backend: RecordingBackend) -> None:
    result = job(backend, S.RUNNING)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"Job a is RUNNING after 0\.1 s; it continues"):
        result.get(timeout=0.1)
    assert 0.1 <= time.monotonic() - begun < 10
    assert not backend.canceled


def test_a_limit_holds_however_long_the_pause_between_two_looks_is(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.client.result._MIN_POLL_S", 60.0)
    result = job(backend, S.RUNNING)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        result.wait(timeout=0.2)
    assert 0.2 <= time.monotonic() - begun < 30


def test_canceling_is_a_wish(backend: RecordingBackend) -> None:
    result = job(backend, S.RUNNING)
    result.cancel()
    result.revoke(terminate=True, signal="SIGKILL")
    assert backend.canceled == ["a", "a"]
    assert result.status is S.RUNNING


def test_a_job_that_may_not_be_read_is_an_error_of_girder(backend: RecordingBackend) -> None:
    with pytest.raises(GirderError, match="Invalid job id"):
        _ = JobResult("gone").status


def test_without_a_girder_that_is_said() -> None:
    with pytest.raises(NotConnectedError):
        JobResult("a").ready()


def test_threads_may_wait_for_the_same_job(backend: RecordingBackend) -> None:
    result = job(backend)
    threads = [threading.Thread(target=result.wait, args=(20,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    backend.jobs["a"]["status"] = int(S.SUCCESS)
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
