"""Girder, scheduler and workers with different versions of the messages, as in an upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.wire_version import WIRE_VERSION
from tests.support.fault_site import FaultStack, until
from tests.support.storage import Storage

S = JobStatus
VERSIONED = Path(__file__).parents[1] / "support" / "versioned"
PARTS = ("girder", "scheduler", "worker-0")


class VersionedStack(FaultStack):
    """A stack whose parts can be restarted with another version of the messages."""

    __test__ = False

    def set_versions(self, girder: int = 0, scheduler: int = 0, worker: int = 0) -> None:
        """Restart all parts, with versions that differ by so much from that of this release."""
        for name in reversed(PARTS):
            self.kill(name)
        for name, more in zip(PARTS, (girder, scheduler, worker), strict=True):
            part = self.part(name)
            version = {"GIRDER_DASK_TEST_WIRE_VERSION": str(WIRE_VERSION + more)}
            part.env = {**part.env, **version, "PYTHONPATH": str(VERSIONED)}
        self.restart("girder", "scheduler")
        self.part("worker-0").start(self._reaper, again=True)
        self._ended.discard("worker-0")

    def pending_reason(self, job_id: str) -> str:
        """Return why a job waits, as its document says."""
        job = self.job(job_id)
        assert job["status"] == S.QUEUED, self.log(job_id)
        return str(job["dask"].get("waits") or "")

    def log_of(self, name: str) -> str:
        """Return the output of a part since the last restart of this test."""
        return self.part(name).log.read_text()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Iterator[VersionedStack]:
    env = {
        **storage.env(),
        "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s",
        "DASK_GIRDER__SCHEDULER__RETRY_DELAY_MAX": "1s",
    }
    directory = tmp_path_factory.mktemp("versions") / "stack"
    with VersionedStack(directory, workers=1, threads=2, env=env) as started:
        yield started


@pytest.mark.parametrize(
    "versions",
    [{"scheduler": 1}, {"girder": 1, "worker": -1}],
    ids=["scheduler newer", "Girder newer and worker older"],
)
def test_neighboring_versions_run_jobs(stack: VersionedStack, versions: dict[str, int]) -> None:
    stack.set_versions(**versions)
    ids = [stack.start_task("steady", 3, 0.1, 7), stack.start_task("add_one", 1, retries=1)]
    for job in stack.wait_all(ids):
        assert job["status"] == S.SUCCESS, stack.log(job["_id"])
    assert stack.numbered(ids[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("versions", "where"),
    [({"scheduler": 2, "worker": 2}, "in Girder"), ({"girder": 2}, "on the scheduler")],
    ids=["scheduler too new", "Girder too new"],
)
def test_job_says_whether_girder_or_scheduler_must_be_upgraded(
    stack: VersionedStack, versions: dict[str, int], where: str
) -> None:
    for name in PARTS:
        stack.part(name).log.write_text("")
    stack.set_versions(**versions)
    job_id = stack.start_task("add_one", 1)
    until(lambda: stack.pending_reason(job_id).endswith(f"upgrade girder_dask {where}"))
    until(lambda: f"upgrade girder_dask {where}" in stack.log_of("scheduler"))
    claims = stack.part("girder").log
    asked = claims.read_text().count("/dask/job/claim")
    until(lambda: claims.read_text().count("/dask/job/claim") >= asked + 4)
    # Once, however often the scheduler asks.
    assert stack.log_of("scheduler").count(f"upgrade girder_dask {where}") == 1
    # A scheduler that ends may log a connection that it loses.
    assert "Traceback" not in stack.log_of("scheduler").rpartition("--- scheduler restarts")[2]
    assert stack.log_of("girder").count("Jobs stay queued: ") <= 2  # also while it starts
    assert "Traceback" not in stack.log_of("girder").rpartition("--- girder restarts")[2]
    assert stack.log(job_id).count(f"upgrade girder_dask {where}") == 1
    stack.set_versions()
    assert stack.wait(job_id, 60)["status"] == S.SUCCESS


@pytest.mark.parametrize(
    ("more", "where"), [(2, "on the scheduler"), (-2, "on the workers")], ids=["newer", "older"]
)
def test_job_says_that_the_workers_do_not_fit(stack: VersionedStack, more: int, where: str) -> None:
    stack.set_versions(worker=more)
    job_id = stack.start_task("add_one", 1)

    def refusal() -> str:
        found = stack.pending_reason(job_id)
        return found if "those that try are refused" in found else ""

    reason = until(refusal)
    assert reason.startswith("no worker is connected to the Dask scheduler; those that try are ")
    assert reason.endswith(f"upgrade girder_dask {where}")
    worker = stack.part("worker-0")
    until(lambda: not worker.running)
    assert "This worker ends: girder_dask has message version" in stack.log_of("worker-0")
    stack.set_versions()
    assert stack.wait(job_id, 60)["status"] == S.SUCCESS
