"""Very many jobs that wait: what they cost, and how soon a new scheduler has them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from distributed import rpc

from girder_dask.jobs import FINAL, JobStatus
from tests.support.fault_site import FaultStack, states, until

S = JobStatus

# What a process may grow by for each job that waits, in bytes, and besides.
OF_A_JOB = 12_000
SLACK = 16 << 20
# By how much more it may grow for the second half of the jobs than for the first, and how much
# longer the processors may work for that, besides some seconds.
OUT_OF_PROPORTION = 1.6
MORE_WORK = 3
# Seconds in which a new scheduler has 50,000 jobs, and for what else the machine does.
BACK, DELAY = 60, 45
# The parts that work when jobs are started, and when a new scheduler gets them.
AT_WORK = ("girder", "mongod", "scheduler")
# How many jobs have run before the rest of a very long queue is canceled.
SAMPLE = 200


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(5_000, id="short", marks=pytest.mark.timeout(900)),
        pytest.param(50_000, id="long", marks=[pytest.mark.timeout(1800), pytest.mark.long]),
    ],
)
def test_many_jobs_wait(
    fault_stack: Callable[..., FaultStack],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
) -> None:
    stack = fault_stack(workers=1, threads=4, own_storage=True)
    stack.remove_worker("worker-0")
    tally = tmp_path / "tally"
    half = count // 2
    sizes, starts, parents, work = [memory(stack)], [], [], [processor(stack, *AT_WORK)]
    for begin in (0, half):
        begun = time.monotonic()
        parents.append(map_some(stack, tally, range(begin, begin + half)))
        until(lambda n=begin + half: in_hand(stack) == n, 300, 0.2)
        starts.append(time.monotonic() - begun)
        work.append(processor(stack, *AT_WORK))
        sizes.append(memory(stack))
    for part in sizes[0]:
        first, second = sizes[1][part] - sizes[0][part], sizes[2][part] - sizes[1][part]
        most = OUT_OF_PROPORTION * max(first, 0) + SLACK
        assert second < most, f"{part} grew by {first}, then by {second}"
        assert first + second < OF_A_JOB * count + SLACK, f"{part} grew by {first + second}"

    stack.kill("scheduler")
    begun, used = time.monotonic(), processor(stack, "girder", "mongod")
    stack.restart("scheduler")
    returns, work_of_new = [time.monotonic() - begun], [processor(stack, *AT_WORK)]  # it is there
    for number in (half, count):
        until(lambda n=number: in_hand(stack) >= n, 300, 0.2)
        returns.append(time.monotonic() - begun)
        work_of_new.append(processor(stack, *AT_WORK))
    assert in_hand(stack) == count
    used = processor(stack, *AT_WORK) - used
    grown = [{p: (b[p] - a[p]) // half for p in a} for a, b in pairwise(sizes)]
    with capsys.disabled():
        print(f"\n{count} jobs: the halves were started in {seconds_of(starts)} s. A new scheduler")
        print(f"was there, had half of them, and all, after {seconds_of(returns)} s, of which the")
        print(f"processors worked {used:.1f} s for it, for Girder and for the database.")
        print(f"Bytes a job, by halves: {grown}")
    for times in (work, work_of_new):
        for_first, for_second = (after - before for before, after in pairwise(times))
        assert for_second < OUT_OF_PROPORTION * for_first + MORE_WORK, times
    assert returns[2] - returns[0] < min(BACK, BACK * count / 50_000 + DELAY)

    stack.restart("worker-0")
    if count > 5_000:
        until(lambda: len(began(tally)) >= SAMPLE, 120, 0.1)
        for parent in parents:
            stack.admin.put(f"job/{parent}/cancel")
    until(lambda: all(job["status"] in FINAL for job in stack.all_jobs(parents)), 600, 1)
    until(lambda: in_hand(stack) == 0, 120, 0.5)
    ended = ends(stack, parents)
    assert ended.total() == count

    runs = began(tally)
    assert set(runs.values()) == {1}, "none ran twice"
    whole = {job["status"] for job in stack.all_jobs(parents)}
    if count > 5_000:
        assert whole == {S.CANCELED}
        assert set(ended) == {S.SUCCESS, S.CANCELED}
        assert ended[S.SUCCESS] <= len(runs)
        assert ended[S.CANCELED] > half
    else:
        assert whole == {S.SUCCESS}
        assert ended == {S.SUCCESS: count}
        assert set(runs) == set(range(count))
        some = stack.all_jobs(jobs_under(stack, parents[1])[:10])
        assert [states(job) for job in some] == [["QUEUED", "RUNNING", "SUCCESS"]] * 10


def seconds_of(times: Sequence[float]) -> str:
    return " and ".join(f"{seconds:.1f}" for seconds in times)


def map_some(stack: FaultStack, tally: Path, numbers: Sequence[int]) -> str:
    """Start a map of jobs that leave a trace, and return the id of its parent."""
    path = str(tally)

    def start() -> str:
        from my_worker_tasks import tally as task

        return str(task.map([path] * len(numbers), numbers).id)

    return str(stack.call(start))


def began(tally: Path) -> Counter[int]:
    """Return how often each of the jobs was begun, by their numbers."""
    lines = tally.read_text().splitlines() if tally.exists() else []
    return Counter(int(line.split()[0]) for line in lines)


def in_hand(stack: FaultStack) -> int:
    """Return how many jobs the scheduler has."""

    async def ask() -> int:
        async with rpc(stack.scheduler) as scheduler:
            return int((await scheduler.girder_status())["jobs"])

    return asyncio.run(ask())


def ends(stack: FaultStack, parents: Sequence[str]) -> Counter[int]:
    """Return how many jobs have ended in which state. While they change it would be inexact."""
    ids = list(parents)

    def group() -> dict[int, int]:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        steps = [
            {"$match": {"parentId": {"$in": [ObjectId(i) for i in ids]}}},
            {"$group": {"_id": "$status", "number": {"$sum": 1}}},
        ]
        return {found["_id"]: found["number"] for found in Job().collection.aggregate(steps)}

    return Counter(stack.call(group))


def jobs_under(stack: FaultStack, parent: str) -> list[str]:
    """Return the ids of the jobs of a map."""

    def find() -> list[str]:
        from girder_jobs.models.job import Job

        from girder_dask.plugin.store.maps.parents import load_part_ids

        return load_part_ids(Job().load(parent, force=True)) or []

    return list(stack.call(find))


def processor(stack: FaultStack, *names: str) -> float:
    """Return the seconds of processors that parts have taken."""
    times = [psutil.Process(stack.part(name).pid).cpu_times() for name in names]
    return sum(time.user + time.system for time in times)


def memory(stack: FaultStack) -> dict[str, int]:
    """Return how many bytes the scheduler and Girder take."""
    return {
        name: psutil.Process(stack.part(name).pid).memory_info().rss
        for name in ("scheduler", "girder")
    }
