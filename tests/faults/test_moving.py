"""A site moves to other hosts: database, files and credential are copied while jobs wait."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.standalone import checks
from tests.support.fault_site import FaultStack, check_history, states, until
from tests.support.make_upgrade_dump import dump
from tests.support.restored_stack import RestoredStack
from tests.support.storage import Storage

S = JobStatus
WAITING = range(6)
CONTENT = b"seven..."


class MovedStack(RestoredStack, FaultStack):
    """A stack that starts with the jobs and files of another one, under other addresses."""

    __test__ = False


class Queue:
    """The jobs of a site whose only worker is busy.

    Parameters
    ----------
    stack
        A stack with one worker of two threads.
    directory
        A directory of files by which tasks report and are held up.
    """

    def __init__(self, stack: FaultStack, directory: Path) -> None:
        self.tally = directory / "tally"
        self.gate = directory / "gate"
        folder = stack.admin.createFolder(_private(stack), "inputs")["_id"]
        self.outputs = str(stack.admin.createFolder(_private(stack), "outputs")["_id"])
        self.file = str(stack.upload(CONTENT, "seven.txt", folder=folder)["_id"])
        self.ended = stack.start_task("tally", str(self.tally), 100)
        stack.wait(self.ended, 60, S.SUCCESS)
        self.running = stack.start_tasks("hold", [(str(self.gate),)] * 2)
        for job_id in self.running:
            stack.wait(job_id, 60, S.RUNNING)
        self.waiting = stack.start_tasks("tally", [(str(self.tally), n) for n in WAITING])
        self.of_a_file, *others = stack.call(_start_others, self.file, self.ended, self.outputs)
        #: The jobs that have not started.
        self.all_waiting = [*self.waiting, self.of_a_file, *others]
        self.canceled = stack.start_task("tally", str(self.tally), 101)
        stack.admin.put(f"job/{self.canceled}/cancel")
        stack.wait(self.canceled, 60, S.CANCELED)

    def runs(self) -> list[int]:
        """Return the numbers of the jobs of ``tally``, once for each run, sorted."""
        return sorted(int(line.split()[0]) for line in self.tally.read_text().splitlines())


def _private(stack: Any) -> str:
    me = stack.admin.get("user/me")["_id"]
    return str(next(iter(stack.admin.listFolder(me, "user", "Private")))["_id"])


def _start_others(file: str, ended: str, folder: str) -> list[str]:
    from my_worker_tasks import add_one, file_size, make_files

    from girder_dask import JobResult
    from girder_dask.transforms import GirderFileId, GirderUploadToFolder

    return [
        str(file_size.delay(GirderFileId(file)).id),
        str(add_one.delay(JobResult(ended)).id),
        str(add_one.options(at_most_once=True).delay(1).id),
        str(make_files.delay(1, girder_result_hooks=[GirderUploadToFolder(folder)]).id),
    ]


@pytest.fixture(scope="module")
def moved(
    tmp_path_factory: pytest.TempPathFactory, storage: Storage
) -> Iterator[tuple[MovedStack, Queue]]:
    """Give the new stack, whose database and files are those of an old one, and its queue."""
    directory = tmp_path_factory.mktemp("moving")
    quick = {
        "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s",
        "DASK_GIRDER__SCHEDULER__LEAVE_GRACE": "1s",
    }
    with FaultStack(directory / "old", 1, 2, env={**quick, **storage.env()}) as old:
        queue = Queue(old, directory)
        old.stop()
        content = dump(old, {}, {})
        options = {"workers": 1, "threads": 2, "env": {**quick, **storage.env()}}
        new = MovedStack(directory / "new", content, **options)
        shutil.copy(old.credential_file, new.credential_file)
        queue.gate.touch()
        # Nothing but the copies may be needed.
        shutil.rmtree(old.directory / "assetstore")
        with new:
            assert new.api != old.api
            assert new.scheduler != old.scheduler
            assert not checks.girder_answers(old.api)
            yield new, queue


def test_moved_site_runs_each_waiting_job_once(moved: tuple[MovedStack, Queue]) -> None:
    stack, queue = moved
    for job in stack.wait_all(queue.all_waiting, 120):
        assert job["status"] == S.SUCCESS, stack.log(job["_id"])
    assert queue.runs() == [*WAITING, 100]
    assert "has 8 bytes" in stack.log(queue.of_a_file)
    assert stack.outputs(queue.outputs) == {"file-0.txt": ["content 0\n"]}


def test_moved_site_runs_jobs_again_that_ran(moved: tuple[MovedStack, Queue]) -> None:
    stack, queue = moved
    for job in stack.wait_all(queue.running, 120):
        assert job["status"] == S.SUCCESS, stack.log(job["_id"])
        # The old workers gave them back when they were stopped, or lost them.
        assert job["dask"]["attempt"] >= 2
        assert "The scheduler was restarted; this is attempt" in stack.log(job["_id"])
        assert [s for s in states(job) if JobStatus[s] in FINAL] == ["SUCCESS"]


def test_moved_site_keeps_what_has_ended(moved: tuple[MovedStack, Queue]) -> None:
    stack, queue = moved
    check_history(stack.job(queue.ended), ["QUEUED", "RUNNING", "SUCCESS"])
    assert stack.job(queue.canceled)["status"] == S.CANCELED
    assert b"".join(stack.admin.downloadFileAsIterator(queue.file)) == CONTENT


def test_moved_site_takes_new_jobs(moved: tuple[MovedStack, Queue]) -> None:
    stack, _ = moved
    job_id = stack.start_task("add_one", 1)
    assert stack.wait(job_id, 60)["status"] == S.SUCCESS
    until(lambda: not stack.open_jobs(), 120)
