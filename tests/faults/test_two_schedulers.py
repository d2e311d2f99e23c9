"""Two schedulers of one Girder: one leads, the other stands by."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, states, until

S = JobStatus
Start = Callable[..., FaultStack]

# Other processes may hold up a scheduler for some seconds, which must not cost it its lease.
LEASE_S = 10
STANDS_BY = "This scheduler stands by: the one at {} on "


@pytest.fixture
def pair(fault_stack: Start) -> FaultStack:
    """Give a test a stack with a second scheduler, which has a worker of its own."""
    env = {"DASK_GIRDER__SCHEDULER__LEASE": f"{LEASE_S}s"}
    stack = fault_stack(workers=1, threads=1, own=True, env=env)
    stack.add_scheduler()
    until(lambda: STANDS_BY.format(stack.scheduler) in said_by_second(stack))
    return stack


def said_by_second(stack: FaultStack) -> str:
    return stack.part("second-scheduler").log.read_text()


def leader(stack: FaultStack) -> str | None:
    """Return where the scheduler is that leads, as operators see it."""
    lease = stack.admin.get("dask/status")["lease"]
    return None if lease is None else lease["place"].partition(" on ")[0]


def address_of(stack: FaultStack, name: str) -> str:
    command = stack.part(name).command
    return f"tcp://127.0.0.1:{command[command.index('--port') + 1]}"


@contextlib.contextmanager
def stopped(stack: FaultStack, name: str) -> Iterator[None]:
    pid = stack.part(name).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def attempts(stack: FaultStack, ids: Sequence[str]) -> list[int]:
    return [job["dask"]["attempt"] for job in stack.all_jobs(ids)]


def test_second_scheduler_stands_by_until_the_leader_stops(pair: FaultStack) -> None:
    ids = pair.start_tasks("steady", [(1, 0.8)] * 4)
    held = pair.start_task("steady", 1, 2.5 * LEASE_S)
    jobs = pair.wait_all(ids)
    assert [job["status"] for job in jobs] == [S.SUCCESS] * 4
    assert attempts(pair, ids) == [1] * 4
    assert leader(pair) == pair.scheduler

    # While Girder does not answer, nobody can renew, and nobody can look.
    pair.wait(held, status=S.RUNNING)
    with stopped(pair, "girder"):
        time.sleep(1.5 * LEASE_S)
    assert pair.wait(held, status=S.SUCCESS)["dask"]["attempt"] == 1
    assert leader(pair) == pair.scheduler

    waiting = pair.start_task("steady", 1, 0.1, resources={"SECOND": 1})
    until(lambda: pair.job(waiting)["dask"]["scheduler"])
    pair.part("scheduler").terminate()
    until(lambda: leader(pair) == address_of(pair, "second-scheduler"), LEASE_S)
    until(lambda: attempts(pair, [waiting]) == [2])

    # The former leader is back, and Girder sends jobs to its address.
    after = pair.start_task("steady", 1, 4.0)
    pair.wait(after, status=S.RUNNING)
    pair.restart("scheduler")
    until(lambda: "This scheduler stands by" in pair.part("scheduler").log.read_text())
    late = pair.start_task("noop")
    reason = "the Dask scheduler to which Girder sends jobs stands by for another one"
    until(lambda: pair.admin.get("dask/status")["scheduler"]["error"])
    until(lambda: reason in pair.log(late) or pair.job(late)["status"] == S.SUCCESS)
    jobs = pair.wait_all([after, late])
    assert [job["status"] for job in jobs] == [S.SUCCESS] * 2
    assert attempts(pair, [after, late]) == [1, 1]


def test_second_scheduler_takes_over_when_the_leader_is_killed(pair: FaultStack) -> None:
    second = address_of(pair, "second-scheduler")
    girder = pair.part("girder")
    girder.env["GIRDER_SETTING_DASK_SCHEDULER_ADDRESS"] = f"{pair.scheduler}, {second}"
    pair.kill("girder")
    pair.restart("girder")
    running = pair.start_task("steady", 1, 60.0)
    pair.wait(running, status=S.RUNNING)
    waiting = pair.start_task("noop")
    pair.kill("scheduler")  # before it can see the loss of its worker
    pair.kill("worker-0")
    begun = time.monotonic()
    until(lambda: leader(pair) == second, 60)
    assert LEASE_S / 2 < time.monotonic() - begun < 10 * LEASE_S
    until(lambda: attempts(pair, [running]) == [2])
    pair.admin.put(f"job/{running}/cancel")
    assert states(pair.wait(waiting))[-2:] == ["RUNNING", "SUCCESS"]

    # Girder sends jobs to the address of the scheduler that leads.
    assert pair.wait(pair.start_task("noop"))["status"] == S.SUCCESS

    def reaches_second() -> bool:
        scheduler = pair.admin.get("dask/status")["scheduler"]
        return bool(scheduler["address"] == second and scheduler["reachable"])

    until(reaches_second)
