"""The job and the directories that a task has, and what is left of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from girder_dask import current_job
from girder_dask.jobs import JobStatus
from girder_dask.worker.job_log.log import current
from tests.support.deadline import SECONDS
from tests.support.run_worker import Worker, captured

S = JobStatus


def test_the_task_can_ask_for_its_job(worker: Worker) -> None:
    seen: list[Any] = []

    def child() -> None:
        seen.append(current_job().id)

    def work() -> tuple[Any, ...]:
        job = current_job()
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()
        assert job.work_dir is not None
        return job.id, job.title, job.request.attempt, job.request.hostname, job.work_dir.is_dir()

    with captured():
        # By reference, so that it writes to this list.
        run = worker.run(None, task="m:f", attempt=3)
        run._function = lambda _call: work  # type: ignore[method-assign, assignment]
        value = worker.begin(run).result(SECONDS)
    assert value == ("a", "Count", 3, "node7", True)
    assert seen == ["a"]


def test_the_client_has_the_rights_of_the_job_and_no_more(worker: Worker) -> None:
    def work() -> tuple[str, str]:
        client = current_job().girder_client
        return client.urlBase, client.token

    shown = worker.outcome(work, token="SECRET", girder_api_url="http://girder/api/v1")
    assert shown == ("http://girder/api/v1/", "SECRET")
    worker.context.api_url = "http://inside:8080/api/v1"
    shown = worker.outcome(work, token="SECRET", girder_api_url="http://girder/api/v1", job_id="b")
    assert shown[0] == "http://inside:8080/api/v1/", "the worker's own configuration comes first"
    assert "SECRET" not in worker.log() + repr(worker.run(None, token="SECRET"))


def test_afterwards_nothing_is_left(worker: Worker) -> None:
    def work() -> str:
        directory = current_job().work_dir
        assert directory is not None
        (directory / "sub").mkdir()
        (directory / "sub" / "x").write_text("x")
        return str(directory)

    for fails in (False, True):
        job_id = f"job{fails}"
        name = worker.outcome(work if not fails else lambda: 1 / 0, job_id=job_id)
        assert fails or not Path(name).exists()
    assert list(worker.context.directory.glob("*")) == []
    left = worker.threads.submit(lambda: (current_job().id, current.get())).result(SECONDS)
    assert left == (None, None)


def test_a_work_directory_that_stays_is_told(worker: Worker, monkeypatch: Any) -> None:
    def fails(_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("girder_dask.worker.run.workspace.rmtree", fails)
    assert worker.outcome(lambda: (current_job().work_dir / "left").write_text("x"))
    assert worker.statuses()[-1] == S.SUCCESS
    assert "Cleaning up after the job failed: OSError: the disk is gone\n" in worker.log()


def test_output_progress_and_state_are_told(worker: Worker) -> None:
    def work() -> None:
        manager = current_job().job_manager
        print("printed")
        manager.write("written\n")
        manager.updateProgress(total=2, current=1, message="half", forceFlush=True)
        manager.updateStatus(S.CONVERTING_OUTPUT)
        print("printed again")

    with captured():
        worker.outcome(work)
    assert worker.log() == "printed\nwritten\nprinted again\n"
    assert worker.statuses() == [S.RUNNING, S.CONVERTING_OUTPUT, S.SUCCESS]
    shown: dict[str, Any] = {}
    for event in worker.events:
        shown |= event.progress or {}
    assert shown == {"total": 2, "current": 1, "message": "half"}


def test_a_directory_that_cannot_be_made_ends_the_run_in_error(worker: Worker) -> None:
    worker.context.directory.write_text("a file is in the way")
    worker.outcome(lambda: current_job().work_dir)
    assert worker.statuses()[-1] == S.ERROR
    assert "NotADirectoryError" in worker.log()
    assert worker.outcome(lambda: 1, job_id="b") == 1, "who needs none is not concerned"
