"""Jobs that wait because nobody can run them say so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, states, until

S = JobStatus
Start = Callable[..., FaultStack]


def waits(stack: FaultStack, job_id: str) -> str | None:
    """Return why a job in the queue waits, as its document says."""
    job = stack.job(job_id)
    assert job["status"] == S.QUEUED
    return job["dask"].get("waits")


def wait_lines(stack: FaultStack, job_id: str) -> list[str]:
    return [line for line in stack.log(job_id).splitlines() if line.startswith("Waiting: ")]


def is_described(stack: FaultStack, job_id: str) -> str:
    """Return how a JobResult in Girder describes the job."""

    def describe() -> str:
        from girder_dask import JobResult

        result = JobResult(job_id)
        assert not result.ready()
        return repr(result)

    return str(stack.call(describe))


def test_scheduler_not_reachable_when_delay_is_called(fault_stack: Start) -> None:
    stack = fault_stack(workers=1, threads=1)
    held = stack.start_task("steady", 2, 60.0)
    stack.wait(held, status=S.RUNNING)
    queued = stack.start_task("noop")
    until(lambda: stack.job(queued)["dask"]["scheduler"])
    stack.kill("scheduler")

    def timed() -> tuple[float, str]:
        import time

        from my_worker_tasks import noop

        begun = time.monotonic()
        result = noop.delay()
        return time.monotonic() - begun, str(result.id)

    took, job_id = stack.call(timed)
    address = stack.part("scheduler").command[stack.part("scheduler").command.index("--port") + 1]
    reason = f"Girder does not reach the Dask scheduler at tcp://127.0.0.1:{address}"
    until(lambda: waits(stack, job_id) == reason)
    took_again, next_id = stack.call(timed)
    # Other processes may hold up one of them.
    assert min(took, took_again) < 1, "it does not wait for the scheduler"
    until(lambda: waits(stack, next_id) == reason)
    assert is_described(stack, job_id) == f"<JobResult {job_id} 'noop' QUEUED, waiting: {reason}>"

    stack.admin.put(f"job/{held}/cancel")
    stack.kill("worker-0")
    stack.restart("scheduler", "worker-0")
    for each in (job_id, next_id, queued):
        job = stack.wait(each)
        assert states(job) == ["QUEUED", "RUNNING", "SUCCESS"]
        assert "waits" not in job["dask"]
        assert "unreached" not in job["dask"]
    first, *more = wait_lines(stack, job_id)
    assert first == f"Waiting: {reason}."
    # The worker, which comes back with the scheduler, may be slow to start.
    assert more in ([], ["Waiting: no worker is connected to the Dask scheduler."])


def test_no_worker_or_none_with_the_asked_resources(fault_stack: Start) -> None:
    stack = fault_stack(workers=1, threads=1)
    no_gpu = "the one worker does not have the resources gpu=2 (dask worker --resources)"
    none = "no worker is connected to the Dask scheduler"
    gpu_id = stack.start_task("noop", resources={"gpu": 2})
    until(lambda: waits(stack, gpu_id) == no_gpu)
    assert is_described(stack, gpu_id).endswith(f"QUEUED, waiting: {no_gpu}>")

    busy_id = stack.start_task("steady", 3, 3.0)
    turn_id = stack.start_task("noop")
    stack.wait(busy_id)
    turn = stack.wait(turn_id)
    assert wait_lines(stack, turn_id) == [], "it waited for its turn"
    assert states(turn) == ["QUEUED", "RUNNING", "SUCCESS"]

    stack.remove_worker("worker-0")
    job_id = stack.start_task("noop")
    next_id = next_job(stack, job_id)
    until(lambda: waits(stack, job_id) == none)
    until(lambda: waits(stack, gpu_id) == none)
    until(lambda: "it needs the value of job " + job_id in (waits(stack, next_id) or ""))
    stack.part("worker-0").command += ("--resources", "gpu=2")
    stack.restart("worker-0")
    for each in (job_id, gpu_id, next_id):
        job = stack.wait(each)
        assert states(job) == ["QUEUED", "RUNNING", "SUCCESS"]
        assert "waits" not in job["dask"]
    assert wait_lines(stack, job_id) == [f"Waiting: {none}."]
    assert wait_lines(stack, gpu_id) == [f"Waiting: {no_gpu}.", f"Waiting: {none}."]


def next_job(stack: FaultStack, job_id: str) -> str:
    """Start a job that needs the value of another."""

    def start() -> str:
        from my_worker_tasks import my_task

        from girder_dask import JobResult

        return str(my_task.delay(JobResult(job_id)).id)

    return str(stack.call(start))


def test_no_worker_for_too_long(fault_stack: Start) -> None:
    stack = fault_stack(
        workers=1, threads=1, env={"DASK_GIRDER__SCHEDULER__NO_WORKER_TIMEOUT": "3s"}
    )
    begun = time.monotonic()
    job_id = stack.start_task("noop", resources={"gpu": 2})
    job: dict[str, Any] = stack.wait(job_id)
    assert time.monotonic() - begun > 3
    assert states(job) == ["QUEUED", "ERROR"]
    reason = "the one worker does not have the resources gpu=2 (dask worker --resources)"
    error = (
        f"No worker could run this job for 3 s: {reason}. It is not retried "
        "(girder.scheduler.no-worker-timeout). Start it again when a worker can."
    )
    assert stack.log(job_id) == f"Waiting: {reason}.\n{error}\n"
    assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS
