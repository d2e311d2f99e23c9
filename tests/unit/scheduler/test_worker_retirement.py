"""Workers are drained before they leave, and only their own jobs are looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Status

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.scheduler import worker_retirement as retirement
from girder_dask.scheduler.job_state import JobState, JobTable
from girder_dask.scheduler.worker_retirement import WorkerRetirement
from tests.support.dispatch_site import Site


class Scheduler:
    """As much of Dask's scheduler as draining needs, with workers that have one thread."""

    def __init__(self, *workers: str) -> None:
        self.workers = {
            address: SimpleNamespace(processing=[], status=Status.running) for address in workers
        }
        self.released: list[str] = []

    async def retire_workers(self, **_choice: Any) -> dict[str, Any]:
        return {}

    def handle_worker_status_change(self, status: Status, ws: Any, _stimulus: str) -> None:
        ws.status = status

    def worker_send(self, _address: str, _message: Any) -> None:
        """The worker does not follow."""

    def transitions(self, keys: dict[str, str], _stimulus: str) -> None:
        self.released += keys

    def assign(self, site: Site, spec: JobSpec, worker: str) -> None:
        self.workers[worker].processing.append(SimpleNamespace(key=spec.key))
        site.place(spec, worker)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retirement, "_DRAIN_CHECK_INTERVAL_S", 0.001)


def retiring(site: Site, scheduler: Scheduler, grace_s: float) -> WorkerRetirement:
    site.cluster.time = asyncio.get_running_loop().time  # type: ignore[method-assign]
    return WorkerRetirement(scheduler, site.dispatcher, site.cluster, grace_s)  # type: ignore[arg-type]


async def test_draining_walks_only_the_jobs_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_walk(_self: JobTable) -> Iterator[JobState]:
        raise AssertionError("all jobs are walked")

    site, scheduler = Site(), Scheduler("w1", "w2", "w3")
    specs = {worker: site.accept(worker) for worker in scheduler.workers}
    site.running(specs["w1"], "w1")
    scheduler.assign(site, specs["w2"], "w2")
    site.succeed(specs["w3"])
    monkeypatch.setattr(JobTable, "__iter__", no_walk)
    await retiring(site, scheduler, 0.02).close()
    assert site.cluster.flushed == ["w1", "w2"], "one has reported a run, one may have started one"
    assert {ws.status for ws in scheduler.workers.values()} == {Status.closing_gracefully}


async def test_worker_leaves_when_its_last_run_has_ended() -> None:
    site, scheduler = Site(), Scheduler("w1")
    spec = site.accept()
    run = site.running(spec, "w1")
    leaving = asyncio.create_task(retiring(site, scheduler, 60.0).girder_leave("w1", remove=False))
    await asyncio.sleep(0.05)
    assert not leaving.done()
    run.says(JobStatus.SUCCESS, result=b"r")
    site.end(spec, "w1")
    await asyncio.wait_for(leaving, 20)
    assert site.cluster.flushed == []
    assert scheduler.released == []


async def test_unfinished_jobs_run_elsewhere_after_the_grace_except_stuck_ones() -> None:
    site, scheduler = Site(), Scheduler("w1")
    specs = [site.accept(job_id) for job_id in "abc"]
    for spec in specs:
        scheduler.assign(site, spec, "w1")
    site.cluster.unbegun["w1"] = [specs[2].key]
    retirement_ = retiring(site, scheduler, 0.01)
    await retirement_.girder_leave("w1", stuck=["b"], remove=False)
    assert "w1" in retirement_
    # The last was taken back at once; here Dask does not remove it from the worker.
    assert scheduler.released == [specs[2].key, specs[0].key, specs[2].key]
    retirement_.on_joined("w1")
    assert "w1" not in retirement_
