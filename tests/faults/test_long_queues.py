"""Very many jobs that wait: what they cost, and how soon a new scheduler has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psutil
import pytest
from distributed import rpc
from fault_site import FaultStack, until

from girder_dask.jobs import JobStatus

AT_ONCE = 1000
# What a process may grow by for each job that waits, in bytes, and besides.
OF_A_JOB = 20_000
SLACK = 40 << 20
# Seconds in which a new scheduler has all of them.
BACK = 60


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2_000, id="short"),
        pytest.param(50_000, id="long", marks=[pytest.mark.timeout(1800), pytest.mark.long]),
    ],
)
def test_many_jobs_wait(
    fault_stack: Callable[..., FaultStack], capsys: pytest.CaptureFixture[str], count: int
) -> None:
    stack = fault_stack(workers=1, threads=4)
    stack.kill("worker-0")
    parents: list[str] = []
    sizes = [memory(stack)]
    for wanted in (count // 2, count):
        while len(parents) * AT_ONCE < wanted:
            parents.append(map_some(stack))
        until(lambda n=wanted: in_hand(stack) == n, 120, 0.5)
        sizes.append(memory(stack))
    for part in sizes[0]:
        first, second = sizes[1][part] - sizes[0][part], sizes[2][part] - sizes[1][part]
        assert second < 2 * max(first, 0) + SLACK, f"{part} grew by {first}, then by {second}"
        assert first + second < OF_A_JOB * count + SLACK, f"{part} grew by {first + second}"

    stack.kill("scheduler")
    stack.restart("scheduler")
    seconds = until_back(stack, count)
    grown = {part: (sizes[2][part] - sizes[0][part]) // count for part in sizes[0]}
    with capsys.disabled():
        print(f"\n{count} jobs: back in {seconds:.1f} s; bytes a job: {grown}", flush=True)

    stack.restart("worker-0")
    for parent in parents[1:] if count > 2_000 else ():
        stack.admin.put(f"job/{parent}/cancel")
    states = [job["status"] for job in stack.wait_all(parents, 600)]
    assert states[0] == JobStatus.SUCCESS
    assert set(states[1:]) <= {JobStatus.SUCCESS, JobStatus.CANCELED}
    until(lambda: in_hand(stack) == 0, 120, 0.5)


def until_back(stack: FaultStack, count: int) -> float:
    """Wait until a scheduler that was just started has all jobs; return the seconds."""
    begun = time.monotonic()
    until(lambda: in_hand(stack) == count, BACK, 0.5)
    return time.monotonic() - begun


def map_some(stack: FaultStack) -> str:
    """Start a map of jobs, and return the id of its parent."""
    most = AT_ONCE

    def start() -> str:
        from my_worker_tasks import sizes

        return str(sizes.map(range(most)).id)

    return str(stack.call(start))


def in_hand(stack: FaultStack) -> int:
    """Return how many jobs the scheduler has."""

    async def ask() -> int:
        async with rpc(stack.scheduler) as scheduler:
            return int((await scheduler.girder_status())["jobs"])

    return asyncio.run(ask())


def memory(stack: FaultStack) -> dict[str, int]:
    """Return how many bytes the scheduler and Girder take."""
    return {
        name: psutil.Process(stack.part(name).pid).memory_info().rss
        for name in ("scheduler", "girder")
    }
