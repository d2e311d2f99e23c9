"""An older backup of the database is restored, while the cluster runs on or with all restarted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from girder_dask.jobs import JobStatus
from tests.support.backup import Backup
from tests.support.fault_site import FaultStack, check_history, states, until

S = JobStatus
Start = Callable[..., FaultStack]


class Site:
    """A site with jobs in all states, of which a backup is taken.

    Parameters
    ----------
    stack
        A stack with four threads.
    directory
        The directory of the gates for which running jobs wait.
    """

    def __init__(self, stack: FaultStack, directory: Path) -> None:
        self.stack = stack
        self.directory = directory
        self.tally = str(directory / "tally")
        self.ended = stack.start_task("add_one", 1)
        stack.wait(self.ended)
        self.ends_later = self.hold("ends later")
        self.runs_on = self.hold("runs on")
        self.others = [self.hold(f"other {n}") for n in range(2)]
        for job_id in (self.ends_later, self.runs_on, *self.others):
            stack.wait(job_id, status=S.RUNNING)
        self.waiting = [stack.start_task("tally", self.tally, n) for n in range(6)]
        self.starts_later = self.hold("starts later")
        self.dependent = self.start_dependent(self.ends_later)
        self.canceled_later = self.hold("canceled later")
        for job_id in (*self.waiting, self.starts_later, self.canceled_later, self.dependent):
            until(lambda job_id=job_id: is_acknowledged(stack.job(job_id)))
        self.backup = Backup(stack)

    def hold(self, name: str) -> str:
        """Start a job that waits for its gate."""
        return self.stack.start_task("hold", str(self.directory / name))

    def open(self, *names: str) -> None:
        """Let jobs end."""
        for name in names:
            (self.directory / name).touch()

    def start_dependent(self, job_id: str) -> str:
        """Start a job that waits for the result of another."""

        def start() -> str:
            from my_worker_tasks import add_one

            from girder_dask import JobResult

            return str(add_one.delay(JobResult(job_id)).id)

        return str(self.stack.call(start))

    def go_on(self) -> None:
        """Let jobs end, start and be canceled, and record new ones. The backup has none of it."""
        stack = self.stack
        stack.admin.put(f"job/{self.canceled_later}/cancel")
        stack.wait(self.canceled_later, status=S.CANCELED)
        self.open("ends later", "other 0", "other 1")
        stack.wait_all([self.ends_later, *self.others, *self.waiting, self.dependent])
        stack.wait(self.starts_later, status=S.RUNNING)
        self.new = self.hold("new")
        stack.wait(self.new, status=S.RUNNING)
        self.new_ended = stack.start_task("add_one", 5)
        stack.wait(self.new_ended)

    def running(self) -> set[str]:
        """Return the ids of the jobs that run on the workers."""
        with Client(self.stack.scheduler, timeout=5) as client:
            keys = {key for keys in client.processing().values() for key in keys}
        return {str(key).split("-")[-2] for key in keys}

    def open_jobs(self) -> list[str]:
        """Return the ids of the jobs that have not ended."""

        def find() -> list[str]:
            from girder_jobs.models.job import Job

            return [str(job["_id"]) for job in Job().collection.find({"dask.open": True})]

        return list(self.stack.call(find))

    def scheduler_jobs(self) -> int:
        """Return how many jobs the scheduler has."""
        with Client(self.stack.scheduler, timeout=5) as client:
            return int(client.sync(client.scheduler.girder_status)["jobs"])

    def check_all_has_ended(self) -> None:
        """Check that each job of the backup ends with its result, and nothing is left."""
        stack = self.stack
        every = [self.ended, self.ends_later, self.runs_on, *self.others, *self.waiting]
        every += [self.starts_later, self.dependent]
        for job in stack.wait_all(every):
            assert job["status"] == S.SUCCESS, stack.log(job["_id"])
            check_history(job, states(job))
        assert results(stack, self.ended, self.dependent) == [2, 2]
        until(lambda: self.open_jobs() == [])
        until(lambda: self.scheduler_jobs() == 0)
        until(lambda: self.running() == set())

    def runs(self) -> list[int]:
        """Return the numbers of the jobs in ``waiting``, once for each run."""
        return sorted(int(line.split()[0]) for line in Path(self.tally).read_text().splitlines())


def is_acknowledged(job: dict[str, Any]) -> bool:
    """Return True if the scheduler has confirmed that it has the job."""
    return bool(job["dask"]["scheduler"]) and "claimed" not in job["dask"]


def results(stack: FaultStack, *ids: str) -> list[Any]:
    """Return the values of jobs."""

    def load() -> list[Any]:
        from girder_dask import JobResult

        return [JobResult(job_id).get(timeout=5) for job_id in ids]

    return list(stack.call(load))


def attempt_of(stack: FaultStack, job_id: str) -> int:
    """Return the number of a job's last attempt."""
    return int(stack.job(job_id)["dask"]["attempt"])


def test_restore_while_scheduler_and_workers_run_on(fault_stack: Start, tmp_path: Path) -> None:
    stack = fault_stack(workers=2, threads=2)
    site = Site(stack, tmp_path)
    site.go_on()
    site.backup.restore(stack)
    # What runs is not disturbed, and shown as running although the backup has it as queued.
    assert stack.job(site.runs_on)["status"] == S.RUNNING
    stack.wait(site.starts_later, status=S.RUNNING)
    # What the backup does not have is gone, and stopped.
    until(lambda: site.new not in site.running())
    site.open("runs on", "starts later", "canceled later")
    site.check_all_has_ended()
    assert attempt_of(stack, site.ended) == attempt_of(stack, site.runs_on) == 1
    assert attempt_of(stack, site.starts_later) == 1
    # What has ended since then runs again, and says why.
    for job_id in (site.ends_later, site.dependent, *site.waiting):
        assert attempt_of(stack, job_id) == 2
        assert "The scheduler no longer had the job; this is attempt 2." in stack.log(job_id)
    assert site.runs() == sorted([*range(6), *range(6)])
    with pytest.raises(Exception, match="Invalid job id"):
        stack.job(site.new)


def test_restore_with_all_processes_stopped(fault_stack: Start, tmp_path: Path) -> None:
    stack = fault_stack(workers=2, threads=2)
    site = Site(stack, tmp_path)
    site.go_on()
    site.backup.restore(stack, "scheduler", "worker-0", "worker-1")
    site.open("runs on", "starts later", "canceled later")
    site.check_all_has_ended()
    assert attempt_of(stack, site.ended) == 1
    for job_id in (site.ends_later, site.runs_on, site.dependent, *site.waiting):
        assert attempt_of(stack, job_id) == 2
        assert "The scheduler was restarted; this is attempt 2." in stack.log(job_id)
    assert site.runs() == sorted([*range(6), *range(6)])
    # The backup does not know of the cancel, and the scheduler neither.
    stack.wait(site.canceled_later, status=S.SUCCESS)
