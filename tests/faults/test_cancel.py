"""Jobs that are canceled: nothing of them runs any more, and nothing of them is left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil
import pytest

from girder_dask.jobs import JobStatus
from girder_dask.transforms import GirderFileId, GirderUploadToFolder
from tests.support.fault_site import FaultStack, states, until

S = JobStatus
Start = Callable[..., FaultStack]

QUEUED_ONLY = ["QUEUED", "CANCELED"]
AT_WORK = ["QUEUED", "RUNNING", "CANCELING", "CANCELED"]

POLITE = """
import time
print("begun")
while not self.canceled:
    time.sleep(0.02)
print("it saw that")
"""
BUSY = """
import time
from girder_dask import JobInterrupted
print("begun")
try:
    while True:
        time.sleep(0.02)
except JobInterrupted:
    print("interrupted")
    raise
"""
DEAF = """
import time
print("begun")
caught = 0
while True:
    try:
        while True:
            time.sleep(0.02)
    except:
        caught += 1
        print("caught", caught)
        if caught == 3:
            break
result = "a value that nobody wants"
"""
SILENT = """
import os, time
open({path!r}, "w").write(str(os.getpid()))
try:
    while True:
        time.sleep(0.02)
finally:
    os.remove({path!r})
"""
PUSHES = """
import time
path = self.work_dir / "partial.txt"
path.write_text("half of it")
print("begun", given)
while True:
    time.sleep(0.02)
result = str(path)
"""

THREADS = """
import threading, time
def write(path):
    while True:
        with open(path, "a") as file:
            file.write("x")
        time.sleep(0.02)
threads = [threading.Thread(target=write, args=(path,)) for path in paths]
for thread in threads:
    thread.start()
print("begun")
if joins:
    for thread in threads:
        thread.join()
else:
    while not self.canceled:
        time.sleep(0.02)
"""
TIMED = """
import threading, time
from girder_dask import JobInterrupted
def work(name):
    seen = None
    try:
        while True:
            if seen is None and self.canceled:
                seen = time.time()
            time.sleep(0.01)
    except JobInterrupted:
        if seen is not None:
            print(name, "was told and interrupted at", time.time(), flush=True)
        raise
threading.Thread(target=work, args=("thread",)).start()
print("begun")
work("task")
"""
TRAPS = """
import subprocess, threading
script = "trap 'echo asked >> $0; test $1 = goes && exit' TERM; echo up; "
script += "while :; do sleep 0.05; done"
def shell(path, what):
    subprocess.run(["sh", "-c", script, path, what])
threading.Thread(target=shell, args=(paths[0], "goes")).start()
shell(paths[1], "stays")
"""


def cancel(stack: FaultStack, job_id: str) -> None:
    """Cancel as Girder's page does."""
    stack.admin.put(f"job/{job_id}/cancel")


def begin(stack: FaultStack, code: str, **options: str) -> str:
    """Start a task and return when it is at work."""
    job_id = stack.start_task("does", code, **options)
    until(lambda: _begun(stack, job_id))
    return job_id


def gone(process: psutil.Process) -> bool:
    """Say whether a process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_queued_jobs_are_canceled_with_nobody_there(fault_stack: Start, tmp_path: Path) -> None:
    """First with no worker, then with no scheduler either. They never run afterwards."""
    stack = fault_stack(workers=1, threads=2)
    tally = tmp_path / "tally"

    def start(number: int) -> str:
        return stack.start_task("tally", str(tally), number)

    stack.remove_worker("worker-0")
    first = start(1)
    cancel(stack, first)
    assert stack.job(first)["status"] == S.CANCELED
    before = start(2)
    stack.kill("scheduler")
    cancel(stack, before)
    after = start(3)
    cancel(stack, after)
    assert {stack.job(job_id)["status"] for job_id in (before, after)} == {S.CANCELED}
    wanted = start(4)

    stack.restart("scheduler", "worker-0")
    assert stack.wait(wanted)["status"] == S.SUCCESS
    assert stack.wait(start(5))["status"] == S.SUCCESS
    assert [line.split()[0] for line in tally.read_text().splitlines()] == ["4", "5"]
    for job_id in (first, before, after):
        assert states(stack.job(job_id)) == QUEUED_ONLY


def test_jobs_at_work_are_told_interrupted_and_ended(fault_stack: Start, tmp_path: Path) -> None:
    """Whatever they do about it, with nothing left of them, and others go on."""
    # Time for each of them to say what it does about it, also where a dozen share a slow processor.
    stack = fault_stack(workers=1, threads=12, env={"DASK_GIRDER__WORKER__CANCEL_GRACE": "2s"})
    user = stack.create_user()
    folder = user.folder["_id"]
    file = stack.upload(b"x" * 1000, "input.bin", client=user.client)
    other = stack.start_task("steady", 100, 6.0)
    polite, busy, deaf = (begin(stack, code) for code in (POLITE, BUSY, DEAF))
    apart = [begin(stack, code, isolation="process") for code in (BUSY, DEAF)]

    def start_transfers() -> str:
        from my_worker_tasks import does

        return str(
            does.apply_async(
                (PUSHES,),
                {"given": GirderFileId(file["_id"])},
                girder_result_hooks=[GirderUploadToFolder(folder)],
            ).id
        )

    pushes = stack.call(start_transfers, user=user)
    until(lambda: _begun(stack, pushes))
    # In the worker's scratch directory, and gone with the job.
    (place,) = [Path(line.split()[1]) for line in stack.log(pushes).splitlines()[-1:]]
    assert place.exists()

    jobs = [polite, busy, deaf, *apart, pushes]
    for job_id in jobs:
        cancel(stack, job_id)
    ended = [stack.wait(job_id) for job_id in jobs]
    assert [states(job) for job in ended[:-1]] == [AT_WORK] * len(ended[:-1])
    assert states(ended[-1]) == ["QUEUED", "FETCHING_INPUT", *AT_WORK[1:]]

    assert "it saw that\n" in stack.log(polite)
    assert "interrupted\n" in stack.log(busy)
    assert "caught 3\n" in stack.log(deaf)
    assert "interrupted\n" in stack.log(apart[0])
    assert "cannot be interrupted" not in stack.log(apart[1]), "its process is killed"
    for job_id in jobs:
        log = stack.log(job_id)
        assert log.startswith("begun")
        assert log.endswith("The job was canceled.\n")
        assert "Traceback" not in log
        assert not list(stack.directory.rglob(f"job-{job_id}-*"))
    assert not place.exists()
    assert [item["name"] for item in user.client.listItem(folder)] == ["input.bin"]
    assert stack.wait(other)["status"] == S.SUCCESS
    assert stack.numbered(other) == list(range(100))


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_subprocesses_end_with_their_groups(
    fault_stack: Start, tmp_path: Path, isolation: str
) -> None:
    stack = fault_stack(workers=1, threads=2)
    (tmp_path / "pids").mkdir()
    worker = stack.worker_process("worker-0").pid
    job_id = stack.start_task("breeds", str(tmp_path / "pids"), isolation=isolation)
    made = until(lambda: len(pids := list((tmp_path / "pids").iterdir())) == 3 and pids)
    family = [psutil.Process(int(path.name)) for path in made if int(path.name) != worker]
    assert len(family) == (2 if isolation == "thread" else 3)

    stack.wait(job_id, status=S.RUNNING)
    cancel(stack, job_id)
    job = stack.wait(job_id)  # they would go on for ten minutes
    assert states(job) == AT_WORK
    assert [process.pid for process in family if not gone(process)] == []
    assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS


def size(paths: list[str]) -> int:
    return sum(path.stat().st_size for path in map(Path, paths) if path.exists())


@pytest.mark.parametrize("joins", [True, False], ids=["waited for", "left"])
def test_threads_end_with_their_job(fault_stack: Start, tmp_path: Path, joins: bool) -> None:
    """When it is CANCELED nothing of it runs; what other jobs have started goes on."""
    stack = fault_stack(workers=1, threads=2)
    paths = [str(tmp_path / name) for name in ("one", "two")]
    others = [str(tmp_path / name) for name in ("three", "four")]
    jobs = [
        stack.start_task("does", f"paths, joins = {files!r}, {joins}\n{THREADS}")
        for files in (paths, others)
    ]
    for job_id in jobs:
        until(lambda job_id=job_id: "begun" in stack.log(job_id))
    before = size(paths)
    until(lambda: size(paths) > before + 10)

    cancel(stack, jobs[0])
    assert states(stack.wait(jobs[0])) == AT_WORK
    at_the_end, of_the_other = size(paths), size(others)
    until(lambda: size(others) > of_the_other + 10)
    assert size(paths) == at_the_end
    first, *told, last = stack.log(jobs[0]).splitlines()
    assert (first, last) == ("begun", "The job was canceled.")
    # Of threads that a task has left the log tells.
    assert [line.partition(":")[0] for line in told] == (
        [] if joins else ["The task returned while what it had started was still running"]
    )
    cancel(stack, jobs[1])
    assert states(stack.wait(jobs[1])) == AT_WORK


def test_a_task_and_its_threads_have_their_grace(fault_stack: Start) -> None:
    stack = fault_stack(workers=1, threads=2, env={"DASK_GIRDER__WORKER__CANCEL_GRACE": "2s"})
    job_id = begin(stack, TIMED)
    asked = time.time()
    cancel(stack, job_id)
    assert states(stack.wait(job_id)) == AT_WORK
    told = r"^(task|thread) was told and interrupted at ([\d.]+)$"
    interrupted = re.findall(told, stack.log(job_id), re.MULTILINE)
    assert {name for name, _ in interrupted} == {"task", "thread"}
    assert all(float(moment) >= asked + 1.9 for _, moment in interrupted), (asked, interrupted)


def test_subprocesses_are_asked_to_end_and_killed_when_they_do_not(
    fault_stack: Start, tmp_path: Path
) -> None:
    """Those of the task's thread and those of another that it has started."""
    stack = fault_stack(workers=1, threads=2)
    goes, stays = (tmp_path / name for name in ("goes", "stays"))
    job_id = stack.start_task("does", f"paths = {[str(goes), str(stays)]!r}\n{TRAPS}")
    until(lambda: stack.log(job_id).count("up") == 2)
    worker = stack.worker_process("worker-0")
    shells = [process for process in worker.children() if process.name() == "sh"]
    assert len(shells) == 2
    start = time.time()
    cancel(stack, job_id)
    until(lambda: size([str(stays)]))
    assert stays.stat().st_mtime - start >= 0.9, "the grace is a second"
    assert states(stack.wait(job_id)) == AT_WORK
    assert [process.pid for process in shells if not gone(process)] == []
    assert len(goes.read_text().splitlines()) == 1
    assert len(stays.read_text().splitlines()) == 1, "it was asked once, and then killed"


def test_a_thread_that_cannot_be_interrupted(fault_stack: Start) -> None:
    """The job is CANCELING until it ends, and its log says so."""
    stack = fault_stack(workers=1, threads=2, env={"DASK_GIRDER__WORKER__CANCEL_GRACE": "0.2s"})
    seconds = 8.0
    job_id = stack.start_task("frozen", seconds)
    until(lambda: "frozen" in stack.log(job_id))
    cancel(stack, job_id)
    until(lambda: "its thread cannot be interrupted" in stack.log(job_id))
    assert stack.job(job_id)["status"] == S.CANCELING
    assert "Set girder.worker.restart-stuck to restart the worker" in stack.log(job_id)
    job = stack.wait(job_id)
    assert states(job) == AT_WORK
    times = {S(s["status"]): datetime.fromisoformat(s["time"]) for s in job["timestamps"]}
    took = (times[S.CANCELED] - times[S.RUNNING]).total_seconds()
    assert took >= seconds - 0.001, "the database keeps whole milliseconds"


def test_a_worker_that_is_restarted_for_it(fault_stack: Start) -> None:
    """What else ran there runs again, without a loss that counts."""
    env = {
        "DASK_GIRDER__WORKER__CANCEL_GRACE": "0.2s",
        "DASK_GIRDER__WORKER__RESTART_STUCK": "2s",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    stack = fault_stack(workers=1, threads=2, env=env)
    job_id = stack.start_task("frozen", 600.0)
    until(lambda: "frozen" in stack.log(job_id))
    other = stack.start_task("steady", 10, 5.0)
    until(partial(stack.numbered, other))
    worker = stack.worker_process("worker-0")
    cancel(stack, job_id)
    job = stack.wait(job_id, 90)
    assert states(job) == AT_WORK
    assert gone(worker)
    until(lambda: not list(stack.directory.rglob(f"job-{job_id}-*")))
    assert " is restarted because the job does not stop.\n" in stack.log(job_id)
    job = stack.wait(other, 90)
    assert job["status"] == S.SUCCESS
    assert stack.numbered(other)[-10:] == list(range(10))

    late = stack.start_task("frozen", 600.0, timeout=0.5)
    job = stack.wait(late, 90)
    assert states(job) == ["QUEUED", "RUNNING", "ERROR"], "as a cancel is"
    assert " is restarted because the job does not stop.\n" in stack.log(late)
    assert stack.log(late).endswith("The task exceeded its time limit of 0.5 s.\n")
    assert stack.log(late).count("frozen\n") == 1, "it does not run again"
    assert stack.wait(stack.start_task("noop"), 90)["status"] == S.SUCCESS


@pytest.mark.parametrize("part", ["worker", "scheduler"])
def test_what_dies_while_a_job_is_canceling(fault_stack: Start, part: str) -> None:
    """The job is CANCELED, and does not run again."""
    stack = fault_stack(workers=2, threads=1, env={"DASK_GIRDER__WORKER__CANCEL_GRACE": "60s"})
    job_id = begin(stack, BUSY)
    cancel(stack, job_id)
    assert stack.job(job_id)["status"] == S.CANCELING
    if part == "worker":
        for name in ("worker-0", "worker-1"):
            stack.worker_process(name).kill()
    else:
        stack.kill("scheduler")
        stack.restart("scheduler")
        for name in ("worker-0", "worker-1"):
            stack.kill(name)
        stack.restart("worker-0", "worker-1")
    job = stack.wait(job_id, 55)
    assert states(job) == AT_WORK
    assert stack.log(job_id).count("begun") == 1
    assert stack.wait(stack.start_task("noop"), 90)["status"] == S.SUCCESS


# -- the ways to ask for it ------------------------------------------------------------------


def by_page(stack: FaultStack, job_id: str, owner: str) -> None:
    """Use the route of Girder's page."""
    stack.admin.put(f"job/{job_id}/cancel")


def by_result(stack: FaultStack, job_id: str, owner: str) -> None:
    """Call ``JobResult.cancel()`` inside Girder."""

    def call() -> None:
        from girder_dask import JobResult

        JobResult(job_id).cancel()

    stack.call(call)


def by_parent(stack: FaultStack, job_id: str, owner: str) -> None:
    """Cancel the job that has started it."""
    stack.admin.put(f"job/{stack.job(job_id)['parentId']}/cancel")


def by_deletion(stack: FaultStack, job_id: str, owner: str) -> None:
    """Delete the job's document."""
    stack.admin.delete(f"job/{job_id}")


def by_owner(stack: FaultStack, job_id: str, owner: str) -> None:
    """Delete the user whose job it is."""
    stack.admin.delete(f"user/{owner}")


def test_each_way_to_cancel_stops_a_silent_task(fault_stack: Start, tmp_path: Path) -> None:
    """One at work that prints nothing, and one that waits behind it, which never runs."""
    stack = fault_stack(workers=1, threads=3)
    for way in (by_page, by_result, by_parent, by_deletion, by_owner):
        user = stack.create_user()
        silent = SILENT.format(path=str(tmp_path / f"{way.__name__}-runs"))
        never = tmp_path / f"{way.__name__}-never"
        if way is by_parent:
            starts = (
                "from my_worker_tasks import does, tally\n"
                f"first = does.delay({silent!r})\n"
                f"second = tally.options(resources={{'none': 1}}).delay({str(never)!r}, 1)\n"
                "result = [first.id, second.id]\n"
                "import time\nprint('begun', *result)\nwhile True: time.sleep(0.02)\n"
            )
            parent = stack.start_task("does", starts, user=user)
            until(partial(_begun, stack, parent))
            running, waiting = stack.log(parent).split()[1:]
        else:
            running = stack.start_task("does", silent, user=user)
            waiting = stack.start_task("tally", str(never), 1, user=user, resources={"none": 1})
        until((tmp_path / f"{way.__name__}-runs").exists)
        stack.wait(running, status=S.RUNNING)
        way(stack, running, user.id)
        if way is not by_owner:
            way(stack, waiting, user.id)
        until(lambda path=tmp_path / f"{way.__name__}-runs": not path.exists())
        if way is by_deletion:
            assert stack.admin.get("job/all", parameters={"limit": 0}) is not None
            left = {job["_id"] for job in stack.admin.get("job/all", parameters={"limit": 0})}
            assert not left & {running, waiting}
        else:
            assert states(stack.wait(running)) == AT_WORK
            assert states(stack.wait(waiting)) == QUEUED_ONLY
        if way is by_owner:
            assert f"The owner of this job, {user.login}, was deleted." in stack.log(running)
    stack.restart_with("worker-0", "--resources", "none=1")
    assert stack.wait(stack.start_task("noop", resources={"none": 1}))["status"] == S.SUCCESS
    assert not list(tmp_path.glob("*-never"))
    log = stack.recent_logs(2000)
    assert "Traceback" not in log, "nothing crashes"


def _begun(stack: FaultStack, job_id: str) -> bool:
    return stack.log(job_id).endswith("\n") and "begun" in stack.log(job_id)
