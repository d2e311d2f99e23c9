"""Jobs that are canceled: how what runs of them is stopped, and what is left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cancel_site import CANCELED, assert_history, is_alive, running_does
from fault_site import FaultStack, until

from girder_dask.jobs import JobStatus

S = JobStatus
Start = Callable[..., FaultStack]

WELL_BEHAVED = """
import time
print("begun")
while not self.canceled:
    time.sleep(0.02)
print("stops by itself")
result = "partial"
"""

# Each swallows the interruption in its own way, ``times`` times.
SWALLOWS = """
import time
print("begun")
for n in range(times):
    try:
        while True:
            time.sleep(0.01)
    except {what}:
        print("swallowed", n, self.canceled)
{then}
"""
LOOP = "while True: time.sleep(0.01)"

NO_END = "it waits in C code, as in time.sleep() or a call of a library, or catches JobCanceled."


def cancel(stack: FaultStack, job_id: str, status: JobStatus = S.CANCELING) -> None:
    """Cancel a job as Girder's page does, and check what it shows then."""
    assert stack.admin.put(f"job/{job_id}/cancel")["status"] == status


def test_queued_job_is_canceled_at_once(fault_stack: Start, tmp_path: Path) -> None:
    """Behind another job, with no worker, and with no scheduler."""
    stack = fault_stack(workers=1, threads=1)
    tally = tmp_path / "tally"

    def queued(number: int) -> str:
        return stack.start_task("tally", str(tally), number)

    busy = stack.start_task("steady", 100, 600.0)
    stack.wait(busy, status=S.RUNNING)
    canceled = [queued(1)]
    until(lambda: stack.job(canceled[0])["dask"].get("scheduler"))
    cancel(stack, canceled[0], S.CANCELED)
    later = queued(2)
    until(lambda: stack.job(later)["dask"].get("scheduler"))
    cancel(stack, busy)
    assert stack.wait(busy, 5, S.CANCELED) or True
    stack.wait(later)
    assert tally.read_text().startswith("2 1 ")

    stack.kill("worker-0")
    canceled.append(queued(3))
    until(lambda: stack.job(canceled[-1])["dask"].get("waits"))
    cancel(stack, canceled[-1], S.CANCELED)
    known = queued(4)
    until(lambda: stack.job(known)["dask"].get("scheduler"))
    stack.kill("scheduler")
    canceled += [known, queued(5)]
    for job_id in canceled[-2:]:
        begun = time.monotonic()
        cancel(stack, job_id, S.CANCELED)
        assert time.monotonic() - begun < 1

    stack.restart("scheduler", "worker-0")
    stack.wait(queued(6))
    assert [line.split()[0] for line in tally.read_text().splitlines()] == ["2", "6"]
    for job_id in canceled:
        assert_history(stack.job(job_id), ["QUEUED", "CANCELED"])


def test_task_that_looks_ends_by_itself(lasting_stack: FaultStack) -> None:
    job_id = running_does(lasting_stack, WELL_BEHAVED)
    begun = time.monotonic()
    cancel(lasting_stack, job_id)
    job = lasting_stack.wait(job_id)
    assert time.monotonic() - begun < 1, "it was not interrupted"
    assert_history(job)
    assert "result" not in job["dask"]
    assert "".join(job["log"]) == "begun\nstops by itself\nThe job was canceled.\n"


@pytest.mark.parametrize(
    ("what", "times", "then"),
    [
        pytest.param("Exception", 0, LOOP, id="none"),
        pytest.param("Exception", 2, LOOP, id="exception"),
        pytest.param("", 2, LOOP, id="bare"),
        pytest.param("BaseException", 1, "result = 'partial'", id="returns"),
    ],
)
def test_python_code_is_interrupted_until_it_ends(
    lasting_stack: FaultStack, what: str, times: int, then: str
) -> None:
    job_id = running_does(lasting_stack, SWALLOWS.format(what=what, then=then), times=times)
    begun = time.monotonic()
    cancel(lasting_stack, job_id)
    job = lasting_stack.wait(job_id)
    assert time.monotonic() - begun > 0.9, "it had its grace"
    assert_history(job)
    swallowed = "".join(f"swallowed {n} True\n" for n in range(times))
    assert "".join(job["log"]) == f"begun\n{swallowed}The job was canceled.\n"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_no_process_of_a_canceled_job_is_left(
    lasting_stack: FaultStack, tmp_path: Path, isolation: str
) -> None:
    """Its children and theirs, in other groups and sessions, and those that ignore SIGTERM."""
    job_id = lasting_stack.start_task("breeds", str(tmp_path), isolation=isolation)

    def pids() -> list[int]:
        return [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]

    until(lambda: len(pids()) == 3)
    workers = {lasting_stack.worker_process(f"worker-{n}").pid for n in (0, 1)}
    bred = set(pids()) - workers
    assert len(bred) == (2 if isolation == "thread" else 3)
    assert all(is_alive(pid) for pid in bred)
    cancel(lasting_stack, job_id)
    job = lasting_stack.wait(job_id)
    assert [pid for pid in bred if is_alive(pid)] == [], "CANCELED is said when all have ended"
    assert_history(job)
    assert "".join(job["log"]) == "The job was canceled.\n"
    assert all(is_alive(pid) for pid in workers)


@pytest.mark.parametrize("sleep", ["time.sleep(600)", "ctypes.CDLL(None).sleep(600)"])
def test_process_of_a_canceled_job_is_killed(
    lasting_stack: FaultStack, tmp_path: Path, sleep: str
) -> None:
    """It swallows whatever is raised and waits in C code."""
    path = tmp_path / "pid"
    code = f"""
import ctypes, os, time
open(path, "w").write(str(os.getpid()))
print("begun")
while True:
    try:
        {sleep}
    except:
        pass
"""

    def start() -> str:
        from my_worker_tasks import does

        return str(does.apply_async((code,), {"path": str(path)}, isolation="process").id)

    job_id = lasting_stack.call(start)
    until(lambda: lasting_stack.log(job_id))
    pid = int(path.read_text())
    cancel(lasting_stack, job_id)
    job = lasting_stack.wait(job_id)
    assert not is_alive(pid)
    assert_history(job)
    assert "".join(job["log"]) == "begun\nThe job was canceled.\n"


def test_code_in_c_is_canceled_when_it_ends(lasting_stack: FaultStack) -> None:
    job_id = lasting_stack.start_task("frozen", 6.0)
    until(lambda: lasting_stack.log(job_id))
    begun = time.monotonic()
    cancel(lasting_stack, job_id)
    until(lambda: NO_END in lasting_stack.log(job_id), 10)
    assert lasting_stack.job(job_id)["status"] == S.CANCELING
    job = lasting_stack.wait(job_id)
    assert time.monotonic() - begun > 4
    assert_history(job)
    log = "".join(job["log"])
    assert log.startswith("frozen\nThe job is to end, but its thread cannot be interrupted: ")
    assert "The job ends when that returns; girder.worker.restart-stuck can be set" in log
    assert log.endswith("\nThe job was canceled.\n")


@pytest.mark.parametrize("kind", ["in C", "swallows"])
def test_worker_of_a_stuck_job_is_restarted(fault_stack: Start, tmp_path: Path, kind: str) -> None:
    """Of its other jobs one ends in time, and one is tried again."""
    env = {
        "DASK_GIRDER__WORKER__RESTART_STUCK": "4s",
        "DASK_GIRDER__SCHEDULER__LEAVE_GRACE": "2s",
    }
    stack = fault_stack(workers=1, threads=3, env=env)
    if kind == "in C":
        stuck = stack.start_task("frozen", 600.0)
        until(lambda: stack.log(stuck))
    else:
        code = (
            SWALLOWS.format(what="", then="").replace("print(", "id(").replace("id(", "print(", 1)
        )
        stuck = running_does(stack, code, times=1_000_000)
    worker = stack.worker_process("worker-0").pid
    tally = tmp_path / "tally"
    long = stack.start_task("tally", str(tally), 2, [600.0, 0.2])
    until(tally.exists)
    cancel(stack, stuck)
    short = stack.start_task("tally", str(tally), 1, [5.0])

    job = stack.wait(stuck)
    assert not is_alive(worker), "CANCELED is said when nothing of it runs any more"
    assert_history(job)
    log = "".join(job["log"])
    assert NO_END in log
    assert re.search(r"^Worker tcp\S+ is restarted, as the job does not stop\.$", log, re.MULTILINE)
    assert_history(stack.wait(short), ["QUEUED", "RUNNING", "SUCCESS"])
    assert_history(stack.wait(long), ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "SUCCESS"])
    assert "is leaving; the job is tried again as attempt 2." in stack.log(long)
    runs = sorted(line.split()[:2] for line in tally.read_text().splitlines())
    assert runs == [["1", "1"], ["2", "1"], ["2", "2"]]


PARTIAL = """
import time, pathlib
made = self.work_dir / "made.txt"
made.write_text("partial")
print(given)
print(self.work_dir, flush=True)
while not self.canceled:
    time.sleep(0.02)
result = str(made)
"""


@pytest.mark.parametrize("at", ["function", "hooks", "upload"])
def test_outputs_are_not_pushed_and_files_are_gone(lasting_stack: FaultStack, at: str) -> None:
    stack = lasting_stack
    user = stack.create_user()
    folder = user.folder["_id"]
    given = stack.upload(b"given", "given.txt", client=user.client)
    # In the third way a large file is under way when the job is canceled.
    code = PARTIAL if at == "function" else PARTIAL.replace("while not", "while False and not")
    if at == "hooks":
        code = code.replace("result = str(made)", "result = (1, str(made))")
    if at == "upload":
        code = code.replace('made.write_text("partial")', 'made.open("wb").truncate(3 << 29)')

    def start() -> str:
        from my_worker_tasks import does

        from girder_dask.transform import ResultTransform
        from girder_dask.transforms import GirderFileId, GirderUploadToFolder

        class Waits(ResultTransform):
            def transform(self, data: Any) -> Any:  # noqa: ARG002 - it has no time for that
                import time

                print("hook begun", flush=True)
                while True:
                    time.sleep(0.01)

        hooks: list[Any] = [GirderUploadToFolder(folder)]
        if at == "hooks":
            hooks.insert(0, Waits())
        kwargs = {"given": GirderFileId(given["_id"])}
        return str(does.apply_async((code,), kwargs, girder_result_hooks=hooks).id)

    job_id = stack.call(start, user=user)
    until(lambda: len(stack.log(job_id).splitlines()) >= (3 if at == "hooks" else 2))
    paths = [Path(line) for line in stack.log(job_id).splitlines()[:2]]
    assert all(path.exists() for path in paths)
    if at == "upload":
        until(lambda: stack.admin.get("system/uploads"), pause=0.01)
    cancel(stack, job_id)
    job = stack.wait(job_id)
    assert "".join(job["log"]).endswith("\nThe job was canceled.\n")
    reached = [] if at == "function" else ["PUSHING_OUTPUT"]
    fetched = ["QUEUED", "FETCHING_INPUT", "RUNNING"]
    assert_history(job, [*fetched, *reached, *CANCELED[2:]])
    assert [path for path in paths if path.exists()] == []
    assert [item["name"] for item in user.client.listItem(folder)] == ["given.txt"]
    assert stack.admin.get("system/uploads") == []


def test_worker_killed_while_its_job_is_canceling(fault_stack: Start, tmp_path: Path) -> None:
    """And a scheduler that is started again."""
    stack = fault_stack(workers=1, threads=1)
    for what in ("worker", "scheduler"):
        tally = tmp_path / what
        assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS
        code = "open(path, 'a').write('run\\n'); print('begun'); import time; time.sleep(600)"
        job_id = running_does(stack, code, path=str(tally))
        worker = stack.worker_process("worker-0")
        cancel(stack, job_id)
        if what == "worker":
            worker.kill()
        else:
            stack.kill("scheduler")
            stack.restart("scheduler")
            assert stack.job(job_id)["status"] in (S.CANCELING, S.CANCELED)
        job = stack.wait(job_id)
        assert_history(job)
        until(lambda pid=worker.pid: not is_alive(pid))
        if what == "scheduler":
            stack.kill("worker-0")
            stack.restart("worker-0")
        assert stack.wait(stack.start_task("noop"))["status"] == S.SUCCESS
        assert tally.read_text() == "run\n", "it did not run again"
        assert stack.job(job_id)["timestamps"] == job["timestamps"]
