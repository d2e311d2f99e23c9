"""Tasks in processes of their own, and their GPUs, on a real stack."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from girder_dask.jobs import JobStatus


def start(stack: Any, name: str, *args: Any, user: Any = None, **options: Any) -> str:
    """Start a task of my_worker_tasks inside Girder, and return the id of its job."""

    def start_it() -> str:
        import my_worker_tasks

        return str(getattr(my_worker_tasks, name).apply_async(args, **options).id)

    return str(stack.call(start_it, user=user))


def value_of(stack: Any, job_id: str) -> Any:
    """Wait for the end of a job, and return its value."""
    assert stack.wait(job_id)["status"] == JobStatus.SUCCESS, stack.log(job_id)

    def value() -> Any:
        from girder_dask import JobResult

        return JobResult(job_id).get(timeout=10)

    return stack.call(value)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"this did not come true within {seconds} s"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def states(job: dict[str, Any]) -> list[str]:
    return [JobStatus(stamp["status"]).name for stamp in job["timestamps"]]


def test_output_of_every_kind_lands_in_the_log_in_order(girder_stack):
    job_id = start(girder_stack, "speaks", 20)
    pid = value_of(girder_stack, job_id)
    assert pid not in girder_stack.pids.values()
    assert not alive(pid)
    assert girder_stack.log(job_id).splitlines() == [
        f"{kind} {i}" for i in range(20) for kind in ("python", "descriptor", "c", "subprocess")
    ]
    assert states(girder_stack.job(job_id)) == ["QUEUED", "RUNNING", "SUCCESS"]


def test_progress_and_facts_of_the_job_are_there(girder_stack, girder_user):
    code = f"""
self.job_manager.updateProgress(total=4, current=3, message='nearly')
folder = self.girder_client.getFolder('{girder_user.folder["_id"]}')
result = [self.id, self.request.attempt, folder['name'], os.path.isdir(self.work_dir)]
"""
    job_id = start(girder_stack, "process", code, user=girder_user)
    assert value_of(girder_stack, job_id) == [job_id, 1, "Private", True]
    progress = girder_stack.job(job_id)["progress"]
    shown = {name: progress[name] for name in ("total", "current", "message")}
    assert shown == {"total": 4, "current": 3, "message": "nearly"}


def test_an_input_is_fetched_for_it_and_an_output_pushed(girder_stack, girder_user):
    file = girder_stack.upload(b"coins" * 100, "coins.bin", client=girder_user.client)

    def start_it(file_id: str) -> str:
        from my_worker_tasks import file_size

        from girder_dask.transforms import GirderFileId

        return str(file_size.apply_async((GirderFileId(file_id),), isolation="process").id)

    job_id = girder_stack.call(start_it, file["_id"], user=girder_user)
    assert value_of(girder_stack, job_id) == 500
    assert girder_stack.log(job_id) == "coins.bin has 500 bytes\n"
    job = girder_stack.job(job_id)
    assert states(job) == ["QUEUED", "FETCHING_INPUT", "RUNNING", "SUCCESS"]
    assert not (job["progress"] or {}).get("message")


def test_an_exception_comes_with_its_traceback(girder_stack):
    job_id = start(girder_stack, "fails", "no coins", isolation="process")
    assert girder_stack.wait(job_id)["status"] == JobStatus.ERROR
    log = girder_stack.log(job_id)
    assert log.startswith("Traceback (most recent call last):\n")
    assert "in _raise" in log
    assert log.endswith("ValueError: no coins\n")

    def error() -> str:
        from girder_dask import JobResult

        try:
            JobResult(job_id).get()
        except ValueError as e:
            return repr(e)
        return "nothing was raised"

    assert girder_stack.call(error) == "ValueError('no coins')"


def test_a_child_job_belongs_to_the_one_that_started_it(girder_stack, girder_user):
    for isolation in ("thread", "process"):
        job_id = start(
            girder_stack, "starts_children", [7, 8], user=girder_user, isolation=isolation
        )
        for n, child_id in enumerate(value_of(girder_stack, job_id), 7):
            assert value_of(girder_stack, child_id) == {"args": [n], "kwargs": {}}

            def parent_of(child_id: str) -> tuple[str, str]:
                from bson import ObjectId
                from girder_jobs.models.job import Job

                found = Job().collection.find_one({"_id": ObjectId(child_id)})
                return str(found["parentId"]), str(found["userId"])

            assert girder_stack.call(parent_of, child_id) == (job_id, girder_user.id)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_call_without_a_job_runs_on_the_cluster(girder_stack, isolation):
    code = """
from my_worker_tasks import my_task
answer = my_task.delay(5, girder_job_disable=True)
result = [answer.get(timeout=20), answer.id is not None]
"""
    job_id = start(girder_stack, "process", code, isolation=isolation)
    assert value_of(girder_stack, job_id) == [{"args": [5], "kwargs": {}}, True]
    assert girder_stack.log(job_id) == "begun\n"


@pytest.mark.parametrize("code", ["c.sleep(1000)", "while True: pass"])
def test_a_canceled_job_ends_soon(girder_stack, code):
    job_id = start(girder_stack, "process", code)
    girder_stack.wait(job_id, status=JobStatus.RUNNING)
    until(lambda: "begun" in girder_stack.log(job_id))
    girder_stack.admin.put(f"job/{job_id}/cancel")
    girder_stack.wait(job_id, status=JobStatus.CANCELED)
    assert girder_stack.log(job_id) == "begun\nThe job was canceled.\n"


def test_a_canceled_job_leaves_no_process(girder_stack, tmp_path):
    path = tmp_path / "pids"
    job_id = start(girder_stack, "parents", str(path))
    pids = [int(pid) for pid in until(lambda: path.exists() and path.read_text()).split()]
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    girder_stack.admin.put(f"job/{job_id}/cancel")
    girder_stack.wait(job_id, status=JobStatus.CANCELED)
    assert [pid for pid in pids if alive(pid)] == []


def test_a_time_limit_ends_code_in_c(girder_stack):
    job_id = start(girder_stack, "process", "c.sleep(1000)", timeout=2)
    assert girder_stack.wait(job_id)["status"] == JobStatus.ERROR
    assert girder_stack.log(job_id) == ("begun\nThe task exceeded its time limit of 2 s.\n")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), 9)", ["SIGKILL", "lack of memory"]),
        ("c.abort()", ["SIGABRT"]),
        ("os._exit(3)", ["exit code 3"]),
        ("sys.exit(3)", ["sys.exit(3)"]),
    ],
)
def test_the_death_of_its_process_is_an_error_and_the_worker_goes_on(girder_stack, code, words):
    job_id = start(girder_stack, "process", code)
    assert girder_stack.wait(job_id)["status"] == JobStatus.ERROR
    log = girder_stack.log(job_id)
    assert log.startswith("begun\n")
    assert [word for word in words if word not in log] == []
    assert states(girder_stack.job(job_id)) == ["QUEUED", "RUNNING", "ERROR"]
    assert value_of(girder_stack, start(girder_stack, "my_task", 1)) == {"args": [1], "kwargs": {}}


# -- GPUs ----------------------------------------------------------------------------------


@pytest.fixture
def gpu_worker(girder_stack: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker with two GPUs beside those of the stack."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", girder_stack.scheduler]
    command += ["--nthreads", "3", "--resources", "GPU=2", "--no-nanny", "--no-dashboard"]
    command += ["--local-directory", str(tmp_path / "scratch"), "--name", "gpus"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,5"}
    path = tmp_path / "worker.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    until(lambda: "Registered to" in path.read_text())
    yield process
    process.terminate()
    process.wait(60)


def test_two_jobs_at_once_have_each_a_gpu_of_its_own(girder_stack, gpu_worker, tmp_path):
    path = tmp_path / "meet"
    path.mkdir()
    jobs = [start(girder_stack, "which_gpus", str(path), 1, resources={"GPU": 1}) for _ in range(2)]
    found = [value_of(girder_stack, job_id) for job_id in jobs]
    assert sorted(each["gpus"] for each in found) == [["4"], ["5"]]
    for each in found:
        assert each["gpus"] == [each["environment"]] == [each["subprocess"]]
    # One has the worker's environment, so the other needs a process of its own.
    in_worker = [each["pid"] == gpu_worker.pid for each in found]
    assert sorted(in_worker) == [False, True]
    assert "runs in a process of its own" in girder_stack.log(jobs[in_worker.index(False)])

    (path / "two").mkdir()
    job_id = start(
        girder_stack, "which_gpus", str(path / "two"), 0, resources={"GPU": 2}, isolation="process"
    )
    both = value_of(girder_stack, job_id)
    assert (both["gpus"], both["environment"]) == (["4", "5"], "4,5")


def test_a_worker_that_is_killed_leaves_no_directory_and_no_process(
    girder_stack, gpu_worker, tmp_path
):
    path = tmp_path / "pids"
    job_id = start(girder_stack, "parents", str(path), resources={"GPU": 1})
    pids = [int(pid) for pid in until(lambda: path.exists() and path.read_text()).split()]
    scratch = tmp_path / "scratch"
    assert list(scratch.rglob(f"job-{job_id}-*")) != []
    gpu_worker.kill()
    gpu_worker.wait(60)
    until(lambda: not any(alive(pid) for pid in pids))
    girder_stack.admin.put(f"job/{job_id}/cancel")
    girder_stack.wait(job_id, status=JobStatus.CANCELED)
    # The next worker with this directory removes what the dead one has left.
    command = [sys.executable, "-m", "distributed.cli.dask_worker", girder_stack.scheduler]
    command += ["--no-nanny", "--no-dashboard", "--local-directory", str(scratch)]
    with (tmp_path / "next.log").open("wb") as log:
        successor = subprocess.Popen(command, stdout=log, stderr=log)

    def is_gone() -> bool:
        with contextlib.suppress(FileNotFoundError):  # it is being removed
            return not list(scratch.rglob(f"job-{job_id}-*"))
        return False

    try:
        until(is_gone)
    finally:
        successor.terminate()
        successor.wait(60)


# -- a worker that gives each job a process ------------------------------------------------


@pytest.fixture
def apart_worker(girder_stack: Any, tmp_path: Path) -> Iterator[psutil.Process]:
    """Start a nanny whose worker gives each job a process, and return that worker."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", girder_stack.scheduler]
    command += ["--nthreads", "4", "--resources", "APART=4", "--no-dashboard"]
    command += ["--local-directory", str(tmp_path / "scratch"), "--name", "apart"]
    env = {**os.environ, "DASK_GIRDER__WORKER__ISOLATION": "process"}
    env["DASK_GIRDER__WORKER__PREIMPORT"] = "['my_worker_tasks']"
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    nanny = psutil.Process(process.pid)

    def ready() -> list[psutil.Process]:
        return [child for child in nanny.children() if server_of(child) is not None]

    (worker,) = until(ready)
    yield worker
    if nanny.is_running():
        process.terminate()
    process.wait(60)


def server_of(worker: psutil.Process) -> int | None:
    """Return the fork server of a worker."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may be one that ends at once
        for child in worker.children():
            with contextlib.suppress(psutil.Error):
                if "girder_dask.worker.isolation.fork_server" in child.cmdline():
                    return int(child.pid)
    return None


WHERE = """
import os, sys, time
deadline = time.monotonic() + 60
open(f'PATH/{self.id}', 'w').close()
while len(os.listdir('PATH')) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)
with open(f'/proc/{os.getppid()}/stat') as f:
    server = int(f.read().rpartition(')')[2].split()[1])
loaded = [m for m in ('distributed', 'my_worker_tasks') if m in sys.modules]
result = [os.getpid(), server, loaded, os.environ['OMP_NUM_THREADS'], len(os.listdir('PATH'))]
"""


def test_a_worker_can_give_a_process_to_each_job(girder_stack, apart_worker, tmp_path):
    """Whatever was asked for; all at once, under a nanny, none left when all of it is killed."""
    meets = tmp_path / "meets"
    meets.mkdir()
    code = WHERE.replace("PATH", str(meets))
    jobs = [
        start(girder_stack, "does", code, resources={"APART": 1}, **options)
        for options in ({}, {"isolation": "thread"}, {"isolation": "process"}, {})
    ]
    found = [value_of(girder_stack, job_id) for job_id in jobs]
    assert len({pid for pid, *_ in found} - {apart_worker.pid}) == 4
    assert {server for _, server, *_ in found} == {server_of(apart_worker)}
    # What opens a client of Dask's costs more than all the rest, so it is loaded when it is needed.
    assert [rest for _, _, *rest in found] == [[["my_worker_tasks"], "1", 4]] * 4
    logs = [girder_stack.log(job_id) for job_id in jobs]
    assert ["girder.worker.isolation" in log for log in logs] == [False, True, False, False]

    path = tmp_path / "pids"
    job_id = start(girder_stack, "parents", str(path), resources={"APART": 1})
    pids = [int(pid) for pid in until(lambda: path.exists() and path.read_text()).split()]
    family = [*pids, server_of(apart_worker), psutil.Process(pids[0]).ppid()]
    assert all(alive(pid) for pid in family)
    apart_worker.parent().kill()
    apart_worker.kill()
    until(lambda: not any(alive(pid) for pid in family))
    girder_stack.admin.put(f"job/{job_id}/cancel")
    girder_stack.wait(job_id, status=JobStatus.CANCELED)
