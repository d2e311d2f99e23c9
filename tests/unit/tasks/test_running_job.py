"""The running job, as the code inside it sees it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from girder_dask import current_job
from girder_dask.errors import JobCanceled
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.tasks.running_job import JobManager, Request, RunningJob, current


class Sink:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def write(self, text: str) -> None:
        self.said.append(text)

    def progress(self, changes: Mapping[str, Any]) -> None:
        self.said.append(dict(changes))

    def status(self, status: JobStatus) -> None:
        self.said.append(status)

    def flush(self) -> None:
        self.said.append("flush")


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def manager(sink: Sink) -> JobManager:
    return JobManager(sink)


def test_outside_a_job_everything_works_and_reports_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = current_job()
    job.job_manager.write("one ")
    job.job_manager.write(b"two \xff\n", forceFlush=True)
    job.job_manager.updateProgress(total=1, current=1, message="done", forceFlush=True)
    job.job_manager.updateStatus(JobStatus.CONVERTING_OUTPUT)
    assert capsys.readouterr().out == "one two \ufffd\n"
    assert (job.id, job.girder_client, job.work_dir, job.canceled) == (None, None, None, False)
    assert repr(job) == "<RunningJob detached ''>"


def test_a_detached_job_keeps_nothing_for_the_next_one() -> None:
    current_job().job_manager.status = JobStatus.CANCELING
    assert not current_job().canceled


def test_the_job_of_a_context_is_its_own() -> None:
    job = RunningJob(id="a", title="Count")
    token = current.set(job)
    seen: list[RunningJob] = []
    try:
        assert current_job() is job
        thread = threading.Thread(target=lambda: seen.append(current_job()))
        thread.start()
        thread.join()
    finally:
        current.reset(token)
    assert seen[0] is not job
    assert current_job().id is None
    assert repr(job) == "<RunningJob a 'Count'>"


def test_text_and_bytes_are_written(manager: JobManager, sink: Sink) -> None:
    manager.write("a")
    manager.write(b"\xc3\xa4")
    manager.write("b", forceFlush=True)
    assert sink.said == ["a", "ä", "b", "flush"]


def test_progress_leaves_out_what_stays_but_not_zero(manager: JobManager, sink: Sink) -> None:
    manager.updateProgress(total=3, current=0)
    manager.updateProgress(message="")
    manager.updateProgress(current=1, forceFlush=True)
    assert sink.said == [{"total": 3, "current": 0}, {"message": ""}, {"current": 1}, "flush"]


def test_a_state_is_told_by_its_number_or_its_name(manager: JobManager, sink: Sink) -> None:
    manager.updateStatus(822)
    assert sink.said == [JobStatus.CONVERTING_OUTPUT]
    assert manager.refreshStatus() is JobStatus.CONVERTING_OUTPUT
    with pytest.raises(ValueError, match="17"):
        manager.updateStatus(17)


@pytest.mark.parametrize("end", sorted(FINAL))
def test_the_end_is_not_the_tasks_to_tell(manager: JobManager, sink: Sink, end: JobStatus) -> None:
    """The rest of the log and the result would come after an end, and be dropped."""
    with pytest.raises(JobCanceled if end == JobStatus.CANCELED else ValueError):
        manager.updateStatus(end)
    assert sink.said == []
    assert manager.status is JobStatus.RUNNING


@pytest.mark.parametrize("status", [JobStatus.INACTIVE, JobStatus.QUEUED, JobStatus.CANCELING])
def test_what_others_decide_is_not_the_tasks_to_tell(
    manager: JobManager, sink: Sink, status: JobStatus
) -> None:
    """A job that was QUEUED could not end any more."""
    with pytest.raises(ValueError, match=f"to {status.name}, only to FETCHING_INPUT, .*PUSHING_"):
        manager.updateStatus(status)
    assert sink.said == []
    assert manager.status is JobStatus.RUNNING


@pytest.mark.parametrize("status", [820, 821, 2, 822, 823])
def test_a_job_at_work_can_be_moved(manager: JobManager, sink: Sink, status: int) -> None:
    manager.updateStatus(status)
    assert sink.said == [status]


def test_what_is_known_can_be_told_again(manager: JobManager, sink: Sink) -> None:
    manager.status = JobStatus.CANCELING
    manager.updateStatus(manager.refreshStatus())
    assert sink.said == []


def test_another_state_does_not_make_a_task_forget_that_it_is_to_stop(manager: JobManager) -> None:
    job = RunningJob(job_manager=manager)
    manager.status = JobStatus.CANCELING
    manager.updateStatus(JobStatus.CONVERTING_OUTPUT)
    assert job.canceled
    assert manager.refreshStatus() is JobStatus.CANCELING


def test_a_request_counts_the_attempts_before() -> None:
    assert Request(id="a").retries == 0
    assert Request(id="a", attempt=3).retries == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_progress_that_is_not_finite_is_left_out(
    manager: JobManager, sink: Sink, value: float
) -> None:
    manager.updateProgress(total=8, current=value)
    manager.updateProgress(total=value, message="on")
    line = (
        f"girder_dask: updateProgress(current={value}) is ignored, since the number is not "
        "finite.\n"
    )
    assert sink.said == [line, {"total": 8.0}, {"message": "on"}]
    assert manager.progress == {"total": 8.0, "message": "on"}


def test_progress_that_no_float_can_hold_is_left_out(manager: JobManager, sink: Sink) -> None:
    manager.updateProgress(total=10**400, current=1)
    assert "updateProgress(total=inf) is ignored" in sink.said[0]
    assert sink.said[1:] == [{"current": 1.0}]


def test_progress_is_a_number(manager: JobManager, sink: Sink) -> None:
    with pytest.raises(ValueError, match="convert"):
        manager.updateProgress(current="many")  # type: ignore[arg-type]
    assert sink.said == []


def test_progress_is_made_plain(manager: JobManager, sink: Sink) -> None:
    manager.updateProgress(total=2**70, message="a\udcff")  # type: ignore[arg-type]
    assert sink.said == [{"total": float(2**70), "message": "a\\udcff"}]
