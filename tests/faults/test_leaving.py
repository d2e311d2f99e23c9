"""Workers and schedulers that leave in good order: what runs there ends, or is tried elsewhere."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from distributed import Client

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, states, until

S = JobStatus
Start = Callable[..., FaultStack]

ENV = {
    "DASK_GIRDER__SCHEDULER__LEAVE_GRACE": "3s",
    # One that leaves is not lost: no job may end for it.
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
}
ONCE = ["QUEUED", "RUNNING", "SUCCESS"]
TWICE = ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "SUCCESS"]


# It goes on until there is a file, and then for a second, which is less than the grace.
SHORT = """
import os, time
n, last = 0, None
while last is None or n < last:
    print("line", n)
    n += 1
    if last is None and os.path.exists(gate):
        last = n + 10
    time.sleep(0.1)
print("the end")
"""


def numbered_to_the_end(stack: FaultStack, job_id: str) -> bool:
    """Return True if the log of a job of ``SHORT`` has all of its lines."""
    said = stack.numbered(job_id)
    ends = stack.log(job_id).endswith(f"line {len(said) - 1}\nthe end\n")
    return ends and len(said) > 10 and said == list(range(len(said)))


class Shift:
    """Two jobs at work on the one worker that there is, and one that waits for it.

    The one ends within the grace once it may, the other goes on for longer.
    """

    def __init__(
        self, stack: FaultStack, tally: Path, begin: Callable[[], None] = lambda: None
    ) -> None:
        self.stack = stack
        self._gate = tally.with_name("gate")
        self._gate.unlink(missing_ok=True)
        self.short = stack.start_task("does", SHORT, kwargs={"gate": str(self._gate)})
        self.long = stack.start_task("tally", str(tally), 1, [60.0, 0.5])
        begin()
        until(lambda: all(stack.job(i)["status"] == S.RUNNING for i in (self.short, self.long)))
        self.waiting = stack.start_task("steady", 5)

    def let_short_end(self) -> None:
        """Let the job end that does so within the grace."""
        self._gate.touch()

    def ends(self) -> None:
        """Check what becomes of them when the worker leaves."""
        self.let_short_end()
        short, long, waiting = self.stack.wait_all([self.short, self.long, self.waiting], 90)
        self.short_is_whole(short)
        assert states(waiting) == ONCE, self.stack.log(self.waiting)
        assert self.stack.numbered(self.waiting) == list(range(5))
        assert states(long) == TWICE, self.stack.log(self.long)
        log = self.stack.log(self.long)
        first, _, second = log.partition("is retried as attempt 2.\n")
        assert first.splitlines()[-1].startswith("Worker tcp://")
        assert first.endswith(" is leaving; the job ")
        lines = [line for line in first.splitlines() if line.startswith("attempt 1 line")]
        assert lines == [f"attempt 1 line {i}" for i in range(len(lines))]
        assert len(lines) > 20, "all that it said in its grace"
        # There may be no worker for a moment, and the log says so.
        told = [line for line in second.splitlines() if not line.startswith("Waiting: no worker")]
        assert told == [f"attempt 2 line {i}" for i in range(5)]

    def short_is_whole(self, job: dict[str, object]) -> None:
        """Check the job that had the time to end."""
        assert states(job) == ONCE
        assert numbered_to_the_end(self.stack, self.short), self.stack.log(self.short)


def test_workers_that_are_told_to_end(fault_stack: Start, tmp_path: Path) -> None:
    """SIGTERM, to one with a nanny, to its nanny, and to one without; and its time of life."""
    stack = fault_stack(workers=2, threads=2, env=ENV)
    stack.remove_worker("worker-1")
    old, new = stack.part("worker-0"), stack.part("worker-1")

    def change() -> None:
        nonlocal old, new
        old, new = new, old

    def shift(begin: Callable[[], None] = lambda: None) -> Shift:
        made = Shift(stack, tmp_path / "tally", begin)
        stack.restart(new.name)
        return made

    # The worker itself: its nanny starts another.
    jobs = shift()
    process = stack.worker_process(old.name)
    process.terminate()
    jobs.ends()
    until(lambda: not process.is_running())
    assert old.running

    # The nanny.
    stack.remove_worker(old.name)
    change()
    jobs = shift()
    psutil.Process(old.pid).terminate()
    jobs.ends()
    until(lambda: not old.running)
    assert old.exit_code == 0

    # One that has no nanny.
    change()
    stack.restart_with(old.name, "--no-nanny")
    stack.remove_worker(new.name)
    jobs = shift()
    psutil.Process(old.pid).terminate()
    jobs.ends()
    until(lambda: not old.running)
    assert old.exit_code == 0

    # One whose time is over.
    change()
    stack.remove_worker(old.name)
    old.command += ("--lifetime", "4s")
    jobs = shift(lambda: stack.restart(old.name))
    jobs.ends()
    until(lambda: not old.running)
    assert old.exit_code == 0


def gone(process: psutil.Process) -> bool:
    """Say whether a process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def named(process: psutil.Process) -> str | None:
    """Return the name of a process, None if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return None


WAITS = """
import subprocess
print("begun")
if self.request.attempt == 1:
    subprocess.run(["sleep", "600"], check=True)
"""


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_worker(
    fault_stack: Start, tmp_path: Path, by: signal.Signals
) -> None:
    """As a service manager, or Ctrl-C in a terminal, sends it. It is no fault of the tasks."""
    stack = fault_stack(workers=1, threads=4, env=ENV)
    apart = stack.start_task("tally", str(tmp_path / "tally"), 1, [60.0, 0.5], isolation="process")
    jobs = [apart, *(stack.start_task("does", WAITS, isolation=i) for i in ("process", "thread"))]
    until(lambda: all("begun" in stack.log(i) for i in jobs[1:]))
    until(lambda: len(stack.numbered(apart, "attempt 1 line")) > 5)
    worker = stack.part("worker-0")
    main = psutil.Process(worker.pid)

    def found_sleeping() -> list[psutil.Process] | None:
        found = [each for each in main.children(recursive=True) if named(each) == "sleep"]
        return found if len(found) == 2 else None

    sleeping = until(found_sleeping)  # they begin after the tasks have said that they do
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        process.send_signal(by)
    until(lambda: not worker.running)
    until(lambda: all(map(gone, sleeping)))
    until(lambda: [stack.job(job_id)["status"] for job_id in jobs] == [S.QUEUED] * 3)

    stack.restart("worker-0")
    for job_id, job in zip(jobs, stack.wait_all(jobs, 90), strict=True):
        log = stack.log(job_id)
        assert states(job) == TWICE, log
        assert "A process of the task was ended together with its worker.\n" in log
        assert "is retried as attempt 2.\n" in log
    assert stack.numbered(apart, "attempt 2 line") == list(range(5))


DEAF = """
import subprocess
if self.request.attempt == 1:
    subprocess.run(["sh", "-c", "trap '' TERM; echo $$ begun; while :; do sleep 0.1; done"])
"""


def test_a_process_that_ignores_sigterm_ends_with_its_worker(fault_stack: Start) -> None:
    """The worker ends since its scheduler is lost, sooner than the grace is over."""
    env = {**ENV, "DASK_GIRDER__WORKER__CANCEL_GRACE": "60s"}
    stack = fault_stack(workers=1, threads=1, env=env)
    job_id = stack.start_task("does", DEAF)
    until(lambda: "begun" in stack.log(job_id))
    shell = psutil.Process(int(stack.log(job_id).split()[0]))
    worker = stack.part("worker-0")
    try:
        stack.kill("scheduler")
        until(lambda: not worker.running)
        until(lambda: gone(shell), 30)  # sooner than the grace is over
    finally:
        if not gone(shell):
            shell.kill()
    stack.restart("scheduler", "worker-0")
    assert states(stack.wait(job_id, 90)) == TWICE


def test_workers_that_are_retired(fault_stack: Start, tmp_path: Path) -> None:
    """By a client, and by the adaptive scaling of a cluster."""
    stack = fault_stack(workers=2, threads=2, env=ENV)
    stack.remove_worker("worker-1")
    jobs = Shift(stack, tmp_path / "tally")
    stack.restart("worker-1")
    with Client(stack.scheduler) as client:
        (address,) = (
            a for a, w in client.scheduler_info()["workers"].items() if w["name"] == "worker-0"
        )
        jobs.let_short_end()
        retired = client.retire_workers([address])
        assert list(retired) == [address]
    jobs.ends()


ADAPTIVE = """
import os, sys, time
from distributed import LocalCluster

if __name__ == "__main__":
    port, directory, signal = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    cluster = LocalCluster(
        n_workers=0, threads_per_worker=1, scheduler_port=port, dashboard_address=None,
        local_directory=directory, scheduler_kwargs={"preload": "girder_dask.scheduler_hooks"},
    )
    cluster.adapt(minimum=3, maximum=3, interval="0.2s", wait_count=1)
    while not os.path.exists(signal):
        time.sleep(0.1)
    cluster.adapt(minimum=0, maximum=1, interval="0.2s", wait_count=1)
    while True:
        time.sleep(1)
"""


def test_workers_that_an_adaptive_cluster_gives_up(fault_stack: Start, tmp_path: Path) -> None:
    stack = fault_stack(workers=1, threads=1, env=ENV)
    scheduler = stack.part("scheduler")
    stack.kill("worker-0")
    stack.kill("scheduler")
    program, told = tmp_path / "adaptive.py", tmp_path / "told"
    program.write_text(ADAPTIVE)
    port = stack.scheduler.rpartition(":")[2]
    with (tmp_path / "adaptive.log").open("w") as log:
        cluster = subprocess.Popen(
            [sys.executable, str(program), port, str(tmp_path), str(told)],
            env=scheduler.env,
            stdout=log,
            stderr=log,
        )

    def workers() -> int:
        with contextlib.suppress(OSError), Client(stack.scheduler, timeout=5) as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])
        return 0

    try:
        # Else the first jobs could end before the last worker has started.
        until(lambda: workers() == 3, 90)
        gate = tmp_path / "gate"
        short = [stack.start_task("does", SHORT, kwargs={"gate": str(gate)}) for _ in range(2)]
        long = stack.start_task("tally", str(tmp_path / "tally"), 1, [7.0, 0.5])
        until(lambda: {j["status"] for j in stack.all_jobs([*short, long])} == {S.RUNNING})
        queued = stack.start_tasks("steady", [(5, 0.0, n) for n in range(20)])
        told.touch()
        gate.touch()
        jobs = stack.wait_all([*short, *queued, long], 90)
        assert [states(job) for job in jobs[:-1]] == [ONCE] * 22
        for job_id in short:
            assert numbered_to_the_end(stack, job_id), stack.log(job_id)
        assert states(jobs[-1]) in (ONCE, TWICE)
        until(lambda: workers() <= 1)
    finally:
        cluster.send_signal(signal.SIGINT)
        try:
            cluster.wait(20)
        except subprocess.TimeoutExpired:
            cluster.kill()
            raise


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_scheduler_that_is_told_to_end(fault_stack: Start, tmp_path: Path, by: int) -> None:
    stack = fault_stack(workers=1, threads=2, env=ENV)
    jobs = Shift(stack, tmp_path / "tally")
    scheduler = stack.part("scheduler")
    psutil.Process(scheduler.pid).send_signal(by)
    jobs.let_short_end()
    until(lambda: not scheduler.running)
    assert scheduler.exit_code == 0
    # Girder has heard all of it, with no scheduler there.
    jobs.short_is_whole(stack.job(jobs.short))
    assert stack.job(jobs.waiting)["status"] == S.QUEUED
    said = stack.numbered(jobs.long, "attempt 1 line")
    assert said == list(range(len(said)))
    assert len(said) > 20

    stack.kill("worker-0")
    stack.restart("scheduler", "worker-0")
    long, waiting = stack.wait_all([jobs.long, jobs.waiting], 90)
    assert states(long) == TWICE, stack.log(jobs.long)
    assert states(waiting) == ONCE, stack.log(jobs.waiting)
    assert "attempt 2" in stack.log(jobs.long)
