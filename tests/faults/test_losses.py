"""Schedulers, workers and clients that die or freeze while jobs run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack, states, until

S = JobStatus
NO_WORKER = "Waiting: no worker is connected to the Dask scheduler.\n"
Start = Callable[..., FaultStack]

# A worker that says nothing for 5 s (Dask takes no less) is given up.
SILENCE = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1s"}
# It waits until it is known to run.
KILLED = """
import os, signal, time
while True:
    job = self.girder_client.get(f"job/{self.id}")
    if job["status"] == 2 and job["dask"]["attempt"] == self.request.attempt:
        break
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""

# An attempt says that it has begun, and goes on until there is a file for it.
GATED = """
import os, time
attempt, n = self.request.attempt, 0
with open(tally, "a") as out:
    print(1, attempt, os.getpid(), file=out)
while not os.path.exists(f"{gate}-{attempt}"):
    print(f"attempt {attempt} line {n}")
    n += 1
    time.sleep(0.1)
made = self.work_dir / "made.txt"
made.write_text(f"made by attempt {attempt}\\n")
open(f"{gate}-{attempt}-returns", "w").close()
print(f"attempt {attempt} returns")
result = (str(made), f"attempt {attempt}")
"""


def runs(tally: Path) -> list[tuple[int, int, int]]:
    """Return number, attempt and process of each run of ``tally`` that began."""
    lines = tally.read_text().splitlines() if tally.exists() else []
    return [tuple(int(word) for word in line.split()) for line in lines]  # type: ignore[misc]


def test_scheduler_killed_with_jobs_queued_and_running(fault_stack: Start, tmp_path: Path) -> None:
    stack = fault_stack(workers=2, threads=2)
    tally = tmp_path / "tally"
    path = str(tally)
    done = stack.start_tasks("tally", [(path, n) for n in range(20)])
    assert {job["status"] for job in stack.wait_all(done)} == {S.SUCCESS}
    running = stack.start_tasks("tally", [(path, 100 + n, [60.0, 1.0]) for n in range(4)])
    until(lambda: {job["status"] for job in stack.all_jobs(running)} == {S.RUNNING})
    queued = stack.start_tasks("tally", [(path, 1000 + n) for n in range(200)])

    stack.kill("scheduler")
    # Before there is another, so that they take no job of its queue with them.
    for name in ("worker-0", "worker-1"):
        stack.kill(name)
    assert len(runs(tally)) == 24, "none of the queue has begun"
    stack.restart("scheduler", "worker-0", "worker-1")

    jobs = stack.wait_all(running + queued, 90)
    assert Counter(job["status"] for job in jobs) == {S.SUCCESS: 204}
    # What had finished did not run again, what ran did so once more, and the rest once.
    once = [*range(20), *range(1000, 1200)]
    expected = {**dict.fromkeys(once, 1), **dict.fromkeys(range(100, 104), 2)}
    assert Counter(number for number, _, _ in runs(tally)) == expected
    again = [(number, attempt) for number, attempt, _ in runs(tally) if number in range(100, 104)]
    assert sorted(again) == [(100 + n, attempt) for n in range(4) for attempt in (1, 2)]
    assert Counter(tuple(states(job)) for job in jobs[4:]) == {
        ("QUEUED", "RUNNING", "SUCCESS"): 200
    }
    for job_id, job in zip(running, jobs, strict=False):
        names = states(job)
        assert names == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "SUCCESS"]
        log = stack.log(job_id)
        assert "The scheduler was restarted; this is attempt 2.\n" in log
        # Workers that are slow to start leave the scheduler without one for a while.
        last = log.partition("this is attempt 2.\n")[2].replace(NO_WORKER, "")
        assert last == "".join(f"attempt 2 line {i}\n" for i in range(10))


def test_worker_killed_in_the_middle_of_a_task(fault_stack: Start, tmp_path: Path) -> None:
    """One together with its nanny, one that has none, and one whose nanny starts it again."""
    stack = fault_stack(workers=2, threads=1)
    stack.remove_worker("worker-1")
    stack.part("worker-1").command.append("--no-nanny")
    tally = tmp_path / "tally"
    job_id = stack.start_task("tally", str(tally), 1, [60.0, 60.0, 60.0, 1.0])

    first = process_of(stack, tally, job_id, 1)
    assert stack.has_nanny("worker-0", first.pid)
    stack.restart("worker-1")
    stack.kill("worker-0")  # its whole group
    second = process_of(stack, tally, job_id, 2)
    assert not stack.has_nanny("worker-1", second.pid)
    stack.restart("worker-0")
    second.kill()
    third = process_of(stack, tally, job_id, 3)
    assert stack.has_nanny("worker-0", third.pid)
    nanny = third.parent()
    third.kill()
    job = stack.wait(job_id)

    assert not stack.part("worker-1").running, "nobody starts it again"
    assert stack.part("worker-0").pid == nanny.pid
    assert nanny.is_running()
    fourth = stack.worker_process("worker-0")
    assert [run for run in runs(tally) if run[1] == 4] == [(1, 4, fourth.pid)]
    assert fourth.pid != third.pid

    assert states(job) == ["QUEUED", *["RUNNING", "QUEUED"] * 3, "RUNNING", "SUCCESS"]
    assert [attempt for _, attempt, _ in runs(tally)] == [1, 2, 3, 4]
    log = stack.log(job_id)
    lost = re.findall(
        r"^Worker (tcp\S+) was lost while the job ran; it is retried as attempt (\d)\.$",
        log,
        re.MULTILINE,
    )
    assert [attempt for _, attempt in lost] == ["2", "3", "4"]
    assert len({address for address, _ in lost}) == 3, "each was another worker"
    assert stack.numbered(job_id, "attempt 4 line") == list(range(10))


def take_nannies(stack: FaultStack, names: Sequence[str]) -> None:
    """Start workers again without a nanny, all at a time."""
    for name in names:
        stack.kill(name)
        stack.part(name).command.append("--no-nanny")
    stack.restart(*names)


def process_of(
    stack: FaultStack, tally: Path, job_id: str, attempt: int, seconds: float = 30
) -> psutil.Process:
    """Wait until an attempt is known to run, and return the process in which it does."""
    until(lambda: stack.numbered(job_id, f"attempt {attempt} line"), seconds)
    (pid,) = [pid for _, number, pid in runs(tally) if number == attempt]
    return psutil.Process(pid)


@pytest.mark.parametrize("nannies", [True, False], ids=["nannies", "none"])
def test_worker_killed_by_its_task(fault_stack: Start, nannies: bool) -> None:
    """Until it is enough."""
    names = ["worker-0", "worker-1"]
    allowed = 3 if nannies else 1
    env = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed)}
    stack = fault_stack(workers=2, threads=2, env=env)
    if not nannies:
        take_nannies(stack, names)
    before = [stack.part(name).pid for name in names]
    job_id = stack.start_task("does", KILLED)
    job = stack.wait(job_id, 90)

    assert states(job) == ["QUEUED", *["RUNNING", "QUEUED"] * allowed, "RUNNING", "ERROR"]
    log = stack.log(job_id)
    lost = re.findall(r"^Worker (tcp\S+) was lost while the job ran; it", log, re.MULTILINE)
    assert len(lost) == allowed
    told = re.search(r"more workers than (\S+) allows.*Workers lost: (.*)\.$", log, re.MULTILINE)
    assert told is not None
    assert told[1] == "distributed.scheduler.allowed-failures"
    named = told[2].split(", ")
    assert named[:-1] == lost
    assert len(set(named)) == allowed + 1, "each worker that was started again has another address"
    assert [stack.part(name).running for name in names] == [nannies] * 2
    assert [stack.part(name).pid for name in names] == before
    if not nannies:
        assert [stack.part(name).exit_code for name in names] == [-signal.SIGKILL] * 2
        stack.restart("worker-0")
    assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS


@pytest.mark.parametrize("during", [False, True], ids=["after the end", "before the end"])
@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(False, id="worker"),
        # Dask waits 30 s for the nanny of a worker that it gives up.
        pytest.param(True, id="host", marks=pytest.mark.long),
    ],
)
def test_worker_stopped_and_continued(
    fault_stack: Start, tmp_path: Path, whole: bool, during: bool
) -> None:
    """The process of a worker without a nanny is frozen, or all of a host.

    It comes back when the new attempt has ended, or while that is at work. The old one then
    returns at once, with a value and an output of its own.
    """
    stack = fault_stack(workers=2, threads=1, env=SILENCE)
    if not whole:
        take_nannies(stack, ["worker-0", "worker-1"])
    user = stack.create_user()
    folder = str(user.folder["_id"])
    tally, gate = tmp_path / "tally", tmp_path / "gate"
    given = {"tally": str(tally), "gate": str(gate)}

    def start() -> str:
        from my_worker_tasks import does

        from girder_dask.transforms import GirderUploadToFolder

        hooks = [GirderUploadToFolder(folder)]
        return str(does.apply_async((GATED,), given, girder_result_hooks=hooks).id)

    job_id = stack.call(start, user=user)
    old = process_of(stack, tally, job_id, 1)
    frozen = stack.home_of(old.pid)
    assert stack.has_nanny(frozen, old.pid) == whole
    os.killpg(stack.part(frozen).pid or 0, signal.SIGSTOP)

    new = process_of(stack, tally, job_id, 2, 60)  # when its worker is given up
    # What was on its way to Girder when the worker was stopped is there before that.
    seen = stack.numbered(job_id, "attempt 1 line")
    assert stack.home_of(new.pid) != frozen
    if not during:
        Path(f"{gate}-2").touch()
        stack.wait(job_id, status=S.SUCCESS)
    before = stack.job(job_id)
    Path(f"{gate}-1").touch()
    os.killpg(stack.part(frozen).pid or 0, signal.SIGCONT)
    until(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE)
    assert Path(f"{gate}-1-returns").exists(), "the old attempt came to its end"
    after = stack.job(job_id)
    assert after["timestamps"] == before["timestamps"]
    assert after["dask"]["attempt"] == 2
    if during:
        assert new.is_running()
        assert list(stack.admin.listItem(folder)) == []
        Path(f"{gate}-2").touch()
    else:
        assert after["log"] == before["log"], "what the old attempt says is not recorded"
    job = stack.wait(job_id)

    at_work = ["RUNNING", "PUSHING_OUTPUT", "SUCCESS"]
    assert states(job) == ["QUEUED", "RUNNING", "QUEUED", *at_work]
    assert value_of(stack, job_id) == [folder, "attempt 2"]
    assert stack.outputs(folder) == {"made.txt": ["made by attempt 2\n"]}
    assert [(number, attempt) for number, attempt, _ in runs(tally)] == [(1, 1), (1, 2)]
    assert stack.numbered(job_id, "attempt 1 line") == seen
    said = stack.numbered(job_id, "attempt 2 line")
    assert said == list(range(len(said)))
    log = stack.log(job_id)
    assert re.search(r"was lost while the job ran \(it was silent for more than \d+ s\)", log)
    assert "attempt 1 returns" not in log
    assert log.count("attempt 2 returns\n") == 1


def value_of(stack: FaultStack, job_id: str) -> list[object]:
    """Return the value of a job as ``get()`` does inside Girder."""

    def get() -> list[object]:
        from girder_dask import JobResult

        return list(JobResult(job_id).get(timeout=30))

    return list(stack.call(get))


def test_client_killed(fault_stack: Start, tmp_path: Path) -> None:
    """A notebook's kernel, which has jobs that run and jobs that wait, and holds their values."""
    stack = fault_stack(workers=1, threads=1)
    tally = tmp_path / "tally"
    program = f"""
import sys, time
import girder_dask
from my_worker_tasks import tally
girder_dask.connect({stack.api!r}, api_key={stack.api_key!r}, scheduler={stack.scheduler!r})
jobs = [tally.delay({str(tally)!r}, n, [1.0]) for n in range(3)]
jobs[0].future
print(*(job.id for job in jobs), flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as kernel:
        assert kernel.stdout is not None
        ids = kernel.stdout.readline().split()
        assert len(ids) == 3
        until(lambda: runs(tally))
        kernel.kill()
    jobs = stack.wait_all(ids)
    assert [job["status"] for job in jobs] == [S.SUCCESS] * 3
    assert [(number, attempt) for number, attempt, _ in runs(tally)] == [(0, 1), (1, 1), (2, 1)]
