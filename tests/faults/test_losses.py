"""Schedulers, workers and clients that die or freeze while jobs run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from fault_site import FaultStack, states, until

from girder_dask.jobs import JobStatus

S = JobStatus
NO_WORKER = "Waiting: no worker is connected to the Dask scheduler.\n"
Start = Callable[..., FaultStack]

# A worker that says nothing for 5 s (Dask takes no less) is given up.
SILENCE = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1s"}
# It waits until it is known to run.
KILLED = "import os, signal, time; time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)"


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
    stack.restart("scheduler")
    for name in ("worker-0", "worker-1"):
        stack.kill(name)
    stack.restart("worker-0", "worker-1")

    jobs = stack.wait_all(running + queued, 60)
    assert Counter(job["status"] for job in jobs) == {S.SUCCESS: 204}
    began = Counter(number for number, _, _ in runs(tally))
    assert all(began[n] == 1 for n in range(20)), "what had finished did not run again"
    assert all(began[1000 + n] >= 1 for n in range(200))
    for job_id, job in zip(running, jobs, strict=False):
        names = states(job)
        assert names == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "SUCCESS"]
        log = stack.log(job_id)
        assert "The scheduler was restarted; this is attempt 2.\n" in log
        # Workers that are slow to start leave the scheduler without one for a while.
        last = log.partition("this is attempt 2.\n")[2].replace(NO_WORKER, "")
        assert last == "".join(f"attempt 2 line {i}\n" for i in range(10))


def test_worker_killed_in_the_middle_of_a_task(fault_stack: Start, tmp_path: Path) -> None:
    """One that has a nanny, and one that has none."""
    stack = fault_stack(workers=2, threads=1)
    stack.restart_with("worker-1", "--no-nanny")
    tally = tmp_path / "tally"
    job_id = stack.start_task("tally", str(tally), 1, [60.0, 60.0, 1.0])
    for attempt in (1, 2):  # the second is on the other worker
        until(partial(stack.numbered, job_id, f"attempt {attempt} line"))
        psutil.Process(runs(tally)[-1][2]).kill()
        if not stack.part("worker-1").running:
            stack.restart("worker-1")
    job = stack.wait(job_id)

    assert states(job) == ["QUEUED", *["RUNNING", "QUEUED"] * 2, "RUNNING", "SUCCESS"]
    assert [attempt for _, attempt, _ in runs(tally)] == [1, 2, 3]
    log = stack.log(job_id)
    lost = re.findall(
        r"^Worker (tcp\S+) was lost while the job ran; it is tried again as attempt (\d)\.$",
        log,
        re.MULTILINE,
    )
    assert [attempt for _, attempt in lost] == ["2", "3"]
    assert lost[0][0] != lost[1][0], "it ran on another worker"
    assert stack.numbered(job_id, "attempt 3 line") == list(range(10))


def test_worker_killed_by_its_task(fault_stack: Start) -> None:
    """Until it is enough."""
    stack = fault_stack(workers=2, threads=2)
    job_id = stack.start_task("does", KILLED)
    job = stack.wait(job_id, 60)

    assert states(job) == ["QUEUED", *["RUNNING", "QUEUED"] * 3, "RUNNING", "ERROR"]
    log = stack.log(job_id)
    lost = re.findall(r"^Worker (tcp\S+) was lost while the job ran; it", log, re.MULTILINE)
    assert len(lost) == 3
    told = re.search(r"more workers than (\S+) allows.*Workers lost: (.*)\.$", log, re.MULTILINE)
    assert told is not None
    assert told[1] == "distributed.scheduler.allowed-failures"
    named = told[2].split(", ")
    assert named[:-1] == lost
    assert len(set(named)) == 4, "each worker that was started again has another address"
    assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(False, id="worker"),
        # Dask waits 30 s for the nanny of a worker that it gives up.
        pytest.param(True, id="host", marks=pytest.mark.long),
    ],
)
def test_worker_stopped_and_continued(fault_stack: Start, tmp_path: Path, whole: bool) -> None:
    """The process of a worker without a nanny is frozen, or all of a host."""
    stack = fault_stack(workers=2, threads=1, env=SILENCE)
    if not whole:
        for name in ("worker-0", "worker-1"):
            stack.restart_with(name, "--no-nanny")
    user = stack.create_user()
    folder = user.folder["_id"]
    tally = tmp_path / "tally"

    def start() -> str:
        from my_worker_tasks import tally as task

        from girder_dask.transforms import GirderUploadToFolder

        hooks = [GirderUploadToFolder(folder)]
        args = (str(tally), 1, [4.0, 1.0], "made.txt")
        return str(task.apply_async(args, girder_result_hooks=hooks).id)

    job_id = stack.call(start, user=user)
    until(lambda: stack.numbered(job_id, "attempt 1 line"))
    pid = runs(tally)[0][2]
    (frozen,) = [name for name in ("worker-0", "worker-1") if pid in pids_of(stack, name)]
    os.killpg(stack.part(frozen).pid or 0, signal.SIGSTOP)
    seen = stack.numbered(job_id, "attempt 1 line")[-1]
    job = stack.wait(job_id, 60)
    assert job["status"] == S.SUCCESS
    log = stack.log(job_id)

    os.killpg(stack.part(frozen).pid or 0, signal.SIGCONT)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
    at_work = ["RUNNING", "PUSHING_OUTPUT", "SUCCESS"]
    assert states(job) == ["QUEUED", "RUNNING", "QUEUED", *at_work]
    after = stack.job(job_id)
    assert after["timestamps"] == job["timestamps"]
    assert "".join(after["log"]) == log, "what the old attempt says is not recorded"
    assert stack.numbered(job_id, "attempt 1 line")[-1] <= seen + 1
    assert stack.numbered(job_id, "attempt 2 line") == list(range(10))
    assert re.search(r"was lost while the job ran \(it was silent for more than \d+ s\)", log)
    (item,) = stack.admin.listItem(folder)
    (file,) = stack.admin.listFile(item["_id"])
    assert b"".join(stack.admin.downloadFileAsIterator(file["_id"])) == b"made by attempt 2\n"


def pids_of(stack: FaultStack, name: str) -> set[int]:
    """Return the processes of a part."""
    first = psutil.Process(stack.part(name).pid)
    return {first.pid, *(child.pid for child in first.children(recursive=True))}


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
