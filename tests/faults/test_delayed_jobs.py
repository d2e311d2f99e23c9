"""Jobs with an earliest start, while the processes that could remember it are killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from girder_dask.jobs import JobStatus, waits_for
from tests.support.fault_site import FaultStack, states, until

S = JobStatus


def test_countdown_and_eta_outlive_girder_and_the_scheduler(
    fault_stack: Callable[..., FaultStack],
) -> None:
    stack = fault_stack(workers=1, threads=1)

    def start(seconds: float) -> list[str]:
        from datetime import datetime, timedelta, timezone

        from my_worker_tasks import noop

        soon = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        results = [noop.apply_async(countdown=seconds), noop.apply_async(eta=soon)]
        return [str(result.id) for result in results]

    delay_s = 25.0  # longer than it takes to kill three parts and to start Girder
    began = time.time()
    ids = stack.call(start, delay_s)
    until(lambda: all(stack.job(each)["dask"]["scheduler"] for each in ids))
    for name in ("worker-0", "scheduler", "girder"):
        stack.kill(name)
    stack.restart("girder")
    for each in ids:  # Girder alone knows it
        job = stack.job(each)
        assert job["status"] == S.QUEUED
        assert waits_for(job).startswith("it is to start at 20")
    ahead = stack.start_task("noop")
    stack.restart("scheduler", "worker-0")
    stack.wait(ahead, 60, status=S.SUCCESS)
    for each in ids:
        job = stack.wait(each, 60, status=S.SUCCESS)
        assert states(job) == ["QUEUED", "RUNNING", "SUCCESS"]
        started = datetime.fromisoformat(job["timestamps"][1]["time"])
        assert started.timestamp() >= began + delay_s
        assert waits_for(job) == ""


def test_cancel_ends_a_delayed_job_without_a_scheduler(
    fault_stack: Callable[..., FaultStack],
) -> None:
    stack = fault_stack(workers=1, threads=1)
    job_id = stack.start_task("noop", countdown=3600)
    until(lambda: stack.job(job_id)["dask"]["scheduler"])
    stack.kill("worker-0")
    stack.kill("scheduler")
    stack.admin.put(f"job/{job_id}/cancel")
    assert stack.job(job_id)["status"] == S.CANCELED
    stack.restart("scheduler", "worker-0")
