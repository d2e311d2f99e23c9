"""A task in a process of its own: real processes, whatever becomes of them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask import current_job, task
from girder_dask.errors import JobCanceled, JobFailed, JobTimeout
from girder_dask.jobs import JobStatus
from girder_dask.protocol.exceptions import open_exception
from girder_dask.protocol.payload import open_value
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.run.runner import Run
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import WORKER, Worker, captured

S = JobStatus


@pytest.fixture(scope="module")
def supervisor() -> Iterator[ForkServerSupervisor]:
    """The fork server of all tests here."""
    kept = ForkServerSupervisor()
    yield kept
    kept.close()


@pytest.fixture
def worker(tmp_path: Path, supervisor: ForkServerSupervisor) -> Iterator[Worker]:
    opened = Worker(tmp_path, supervisor)
    opened.context.grace_s = 0.3
    yield opened
    for run in list(opened.context.runs.values()):  # of a test that has failed
        run.cancel()
        run.interrupt()
    opened.close()


def outcome(worker: Worker, function: Callable[..., Any] | None, *args: Any, **fields: Any) -> Any:
    return worker.outcome(function, *args, isolation="process", **fields)


def begin(worker: Worker, function: Callable[..., Any] | None, *args: Any, **fields: Any) -> Run:
    return worker.run(function, *args, isolation="process", **fields)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def pid_in(path: Path) -> int:
    """Wait until a task has written a process id to a file."""
    return int(
        until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text())
    )


# -- what comes back -----------------------------------------------------------------------


def test_a_function_runs_in_another_process(worker: Worker) -> None:
    def work(a: int, *, b: int) -> tuple[int, int]:
        return os.getpid(), a + b

    pid, total = outcome(worker, work, 1, kwargs={"b": 2})
    assert total == 3
    assert pid != os.getpid()
    assert not alive(pid)
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert open_value(worker.end.result or b"", unpickle=False) == (pid, 3)
    assert list(worker.context.directory.glob("*")) == []


@task
def a_task(n: int) -> int:
    return 2 * n


def test_a_task_is_found_by_its_name_and_not_imported_in_the_worker(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_there.py").write_text(
        "from girder_dask import task\n@task\ndef double(n):\n    return 2 * n\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert outcome(worker, None, 4, task="only_there:double") == 8
    assert "only_there" not in sys.modules


def test_a_large_value_comes_back_whole(worker: Worker) -> None:
    value = outcome(worker, lambda data: data * 2, b"x" * 5_000_000)
    assert value == b"x" * 10_000_000
    assert worker.end.result is None
    assert "girder.worker.max-result" in (worker.end.error or "")


def test_a_value_that_cannot_be_pickled_is_not_kept_but_is_no_error(worker: Worker) -> None:
    outcome(worker, threading.Lock)
    assert worker.statuses()[-1] == S.SUCCESS
    assert worker.end.result is None
    assert (worker.end.error or "").startswith("it cannot be pickled (TypeError: cannot pickle")


def test_an_exception_comes_back_with_its_traceback(worker: Worker) -> None:
    def deeper() -> None:
        raise ValueError("no coins")

    error = outcome(worker, deeper)
    assert isinstance(error, ValueError)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.end.error == "ValueError: no coins"
    log = worker.log()
    assert log.startswith("Traceback (most recent call last):\n")
    assert "in deeper" in log
    assert log.endswith("ValueError: no coins\n")
    assert "child.py" not in log
    kept, text = open_exception(worker.end.exception or b"", unpickle=False)
    assert repr(kept) == "ValueError('no coins')"
    assert text == log


def test_a_task_may_close_what_stands_after_the_standard_descriptors(worker: Worker) -> None:
    assert outcome(worker, lambda: os.closerange(3, 256) or 5) == 5
    assert worker.log() == ""


def test_a_task_that_closes_every_descriptor_is_told_so(worker: Worker) -> None:
    error = outcome(worker, lambda: os.closerange(3, 1 << 16))
    assert isinstance(error, JobFailed)
    assert "A task must not close descriptors that it has not opened" in worker.log()
    assert "Traceback" not in worker.log()


def test_an_exit_is_told_as_in_a_thread(worker: Worker) -> None:
    assert isinstance(outcome(worker, lambda: sys.exit(3)), JobFailed)
    assert worker.end.error == "SystemExit: 3"
    assert "sys.exit(3)" in worker.log()


def test_a_package_that_is_missing_is_named_before_it_runs(worker: Worker) -> None:
    error = outcome(worker, None, task="no_such_tasks.coins:count", package="no-such-tasks 1.2")
    assert isinstance(error, ModuleNotFoundError)
    assert worker.statuses() == [S.ERROR]
    assert f"cannot run on worker {WORKER} on node7" in worker.log()
    assert worker.log().endswith("    pip install 'no-such-tasks==1.2'\n")


# -- its surroundings ----------------------------------------------------------------------


def test_it_has_its_job_and_says_of_itself_what_it_wants(worker: Worker) -> None:
    def work() -> list[Any]:
        job = current_job()
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append(current_job().id))
        thread.start()
        thread.join()
        job.job_manager.updateStatus(821)
        job.job_manager.updateProgress(total=4, current=3, message="nearly", forceFlush=True)
        job.job_manager.write("written\n")
        client = job.girder_client
        return [
            seen, job.id, job.title, job.request.attempt, job.request.hostname,
            job.work_dir and job.work_dir.is_dir(), client.urlBase, client.token,
        ]  # fmt: skip

    fields = {"attempt": 3, "token": "SECRET", "girder_api_url": "http://girder/api/v1"}
    assert outcome(worker, work, **fields) == [
        ["a"], "a", "Count", 3, "node7", True, "http://girder/api/v1/", "SECRET",
    ]  # fmt: skip
    assert worker.statuses() == [S.RUNNING, S.SUCCESS] or S.CONVERTING_INPUT in worker.statuses()
    shown: dict[str, Any] = {}
    for event in worker.events:
        shown |= event.progress or {}
    assert shown == {"total": 4, "current": 3, "message": "nearly"}
    assert worker.log() == "written\n"


def test_what_it_shows_from_forks_does_no_harm(worker: Worker) -> None:
    def work() -> None:
        children = []
        for n in range(4):
            pid = os.fork()
            if pid == 0:
                for i in range(200):
                    current_job().job_manager.updateProgress(total=800, current=i, message="x" * n)
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)

    assert outcome(worker, work) is None
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]


def test_its_gpus_are_in_its_environment(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    from girder_dask.worker.gpus import GpuAllocator

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    worker.context.gpus = GpuAllocator(["4", "5"])

    def work() -> tuple[Any, ...]:
        return os.environ["CUDA_VISIBLE_DEVICES"], current_job().request.gpus

    assert outcome(worker, work, resources={"GPU": 1.0}) == ("4", ("4",))
    assert outcome(worker, work, resources={"GPU": 2.0}, job_id="b") == ("4,5", ("4", "5"))
    assert outcome(worker, work, job_id="c") == ("4,5", ())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"


# -- its output ----------------------------------------------------------------------------


def test_all_that_it_writes_is_in_the_log_in_order(worker: Worker) -> None:
    def work() -> None:
        import logging
        import warnings

        libc = ctypes.CDLL(None)
        for n in range(50):
            print(f"print {n}")
            os.write(1, f"write {n}\n".encode())
            libc.puts(f"puts {n}".encode())
            print(f"stderr {n}", file=sys.stderr)
            sys.stdout.buffer.write(f"bytes {n}\n".encode())
            logging.getLogger("x").info("logged %d", n)
            current_job().job_manager.write(f"manager {n}\n")
        subprocess.run(["echo", "subprocess"], check=True)
        os.system("echo system >&2")  # noqa: S605
        print("begun, ", end="")
        subprocess.run(["echo", "and ended"], check=True)
        warnings.warn("take care", stacklevel=1)

    outcome(worker, work)
    lines = worker.log().splitlines()
    kinds = ("print", "write", "puts", "stderr", "bytes", "logged", "manager")
    assert lines[:350] == [f"{kind} {n}" for n in range(50) for kind in kinds]
    assert lines[350:353] == ["subprocess", "system", "begun, and ended"]
    assert "UserWarning: take care" in lines[353]


def test_lines_of_threads_stay_whole(worker: Worker) -> None:
    def work() -> None:
        def say(name: str) -> None:
            for n in range(300):
                print(f"{name} {n}")

        threads = [threading.Thread(target=say, args=(name * 20,)) for name in "abcd"]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    outcome(worker, work)
    lines = worker.log().splitlines()
    assert sorted(lines) == sorted(f"{name * 20} {n}" for name in "abcd" for n in range(300))


def test_much_output_is_whole_and_waits_for_the_worker(worker: Worker) -> None:
    worker.context.outbox = worker.make_outbox(capacity=10_000)

    def work() -> None:
        for n in range(20_000):
            os.write(1, b"line %d of many\n" % n)

    with captured():
        outcome(worker, work)
    assert worker.log() == "".join(f"line {n} of many\n" for n in range(20_000))


# -- its death -----------------------------------------------------------------------------


def test_a_process_that_is_killed_is_an_error_that_names_the_signal(worker: Worker) -> None:
    def work() -> None:
        print("last words")
        os.kill(os.getpid(), signal.SIGKILL)

    assert isinstance(outcome(worker, work), JobFailed)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert "last words\n" in worker.log()
    assert "SIGKILL" in (worker.end.error or "")
    assert "lack of memory" in (worker.end.error or "")
    assert outcome(worker, lambda: 1, job_id="b") == 1


def test_a_crash_in_c_is_an_error_with_a_traceback(worker: Worker) -> None:
    outcome(worker, lambda: ctypes.string_at(0))
    assert "SIGSEGV" in (worker.end.error or "")
    assert "Fatal Python error: Segmentation fault" in worker.log()


@pytest.mark.parametrize(
    "death",
    [
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        lambda: os.kill(os.getpid(), signal.SIGINT),
        lambda: os.kill(os.getppid(), signal.SIGTERM) or time.sleep(1000),
        lambda: subprocess.run(["sh", "-c", "kill $$"], check=True),
        lambda: subprocess.run(["sh", "-c", "sh -c 'kill $$'; exit $?"], check=True),
    ],
    ids=["killed", "interrupted", "subreaper", "subprocess", "in a shell"],
)
def test_what_is_ended_with_its_worker_is_left_to_another_attempt(
    worker: Worker, death: Callable[[], Any]
) -> None:
    run = begin(worker, death)
    run._is_leaving = lambda: True
    assert worker.begin(run).exception(SECONDS) is not None
    assert not run.control.reports_end
    until(lambda: worker.log().endswith("was ended together with its worker.\n"))
    assert worker.statuses() == [S.RUNNING]


@pytest.mark.parametrize(
    "failure", [lambda: ctypes.string_at(0), lambda: 1 / 0, lambda: os._exit(3)]
)
def test_an_error_of_its_own_is_one_though_the_worker_ends(
    worker: Worker, failure: Callable[[], Any]
) -> None:
    run = begin(worker, failure)
    run._is_leaving = lambda: True
    assert worker.begin(run).exception(SECONDS) is not None
    until(lambda: worker.statuses() == [S.RUNNING, S.ERROR])


def test_an_exit_of_the_process_is_an_error_with_its_code(worker: Worker) -> None:
    outcome(worker, lambda: os._exit(3))
    assert "exit code 3" in (worker.end.error or "")
    assert "os._exit" in worker.log()


LOOPS = {
    "python": "while True: pass",
    "sleep": "time.sleep(1000)",
    "deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    "c": "ctypes.PyDLL(None).sleep(1000)",
    "swallows": "while True:\n    try: time.sleep(1000)\n    except BaseException: pass",
}


def loop(path: str, code: str) -> None:
    Path(path).write_text(f"{os.getpid()}\n")
    exec(code, {"time": time, "signal": signal, "ctypes": ctypes})  # noqa: S102 - our own


@pytest.mark.parametrize("kind", LOOPS)
def test_a_canceled_task_ends_whatever_it_does(worker: Worker, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pid"
    run = begin(worker, loop, str(path), LOOPS[kind])
    future = worker.begin(run)
    pid = pid_in(path)
    run.control.cancel()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert worker.log() == "The job was canceled.\n"
    assert not alive(pid)
    assert list(worker.context.directory.glob("*")) == []


@pytest.mark.parametrize("kind", LOOPS)
def test_a_task_that_runs_too_long_ends_in_error(worker: Worker, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pid"
    error = outcome(worker, loop, str(path), LOOPS[kind], timeout=2.0)
    assert isinstance(error, JobTimeout)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.log() == "The task exceeded its time limit of 2 s.\n"
    assert worker.end.error == "The task exceeded its time limit of 2 s."
    assert not alive(pid_in(path))


def test_a_task_that_looks_stops_by_itself(worker: Worker, tmp_path: Path) -> None:
    def work(path: str) -> str:
        Path(path).write_text("1\n")
        while not current_job().canceled:
            time.sleep(0.01)
        Path(path).with_name("seen").touch()
        return "stopped"

    run = begin(worker, work, str(tmp_path / "pid"))
    future = worker.begin(run)
    pid_in(tmp_path / "pid")
    run.control.cancel()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert (tmp_path / "seen").exists()


def test_a_job_that_is_canceled_while_its_module_loads_ends(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loads_long.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r})"
        ".write_text(f'{os.getpid()}\\n')\ntime.sleep(1000)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = begin(worker, None, task="loads_long:count")
    future = worker.begin(run)
    pid = pid_in(tmp_path / "pid")
    run.control.cancel()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert not alive(pid)


# -- what it leaves behind -----------------------------------------------------------------

TREE = """
import os, subprocess, sys, time
def work(path, ending):
    # One in the group, and one that has left it and whose parent is gone.
    inside = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])
    code = 'import subprocess, sys; p = subprocess.Popen([sys.executable, "-c", '
    code += '"import time, signal; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"], '
    code += 'stdout=subprocess.DEVNULL, start_new_session=True); print(p.pid)'
    outside = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    open(path, 'w').write(f'{inside.pid} {outside.stdout.strip()}\\n')
    exec(ending)
"""


def tree() -> Callable[..., Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(TREE, names)  # noqa: S102 - our own
    return names["work"]  # type: ignore[no-any-return]


def pids_in(path: Path) -> list[int]:
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.parametrize(
    "ending", ["pass", "1 / 0", "os._exit(0)", "os.kill(os.getpid(), 9)", "sys.exit()"]
)
def test_no_process_is_left_however_the_task_ends(
    worker: Worker, tmp_path: Path, ending: str
) -> None:
    outcome(worker, tree(), str(tmp_path / "pids"), ending)
    assert [pid for pid in pids_in(tmp_path / "pids") if alive(pid)] == []
    assert "The task left 2 processes behind." in worker.log()


def test_no_process_is_left_when_the_job_is_canceled(worker: Worker, tmp_path: Path) -> None:
    run = begin(worker, tree(), str(tmp_path / "pids"), "subprocess.run(['sleep', '1000'])")
    future = worker.begin(run)
    pids = pids_in(tmp_path / "pids")
    run.control.cancel()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert [pid for pid in pids if alive(pid)] == []
    until(lambda: worker.log() == "The job was canceled.\n")


def test_a_thread_that_does_not_end_does_not_hold_up_the_job(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from girder_dask.worker.isolation import task_process

    monkeypatch.setattr(task_process, "_EXIT_TIMEOUT_S", 0.3)

    def work() -> int:
        threading.Thread(target=time.sleep, args=(1000,)).start()
        return os.getpid()

    assert not alive(outcome(worker, work))
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert "It was killed." in worker.log()


def test_what_is_registered_for_the_exit_runs_and_its_output_is_kept(worker: Worker) -> None:
    def work() -> None:
        import atexit

        atexit.register(print, "good bye")

    outcome(worker, work)
    assert worker.log() == "good bye\n"


WORKER_PROGRAM = """
import sys, pathlib, threading
sys.path[:0] = {path!r}
from tests.support.run_worker import Worker
from tests.unit.worker.isolation.test_child import begin, tree
worker = Worker(pathlib.Path({directory!r}))
run = begin(worker, tree(), {pids!r}, "time.sleep(1000)")
worker.begin(run)
threading.Event().wait()
"""


def test_no_process_is_left_when_the_worker_is_killed(tmp_path: Path) -> None:
    code = WORKER_PROGRAM.format(
        path=[str(Path(__file__).parents[4])],
        directory=str(tmp_path),
        pids=str(tmp_path / "pids"),
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            pids = pids_in(tmp_path / "pids")
            assert all(alive(pid) for pid in pids)
        finally:
            process.kill()
    until(lambda: not any(alive(pid) for pid in pids))


def test_killing_the_subreaper_ends_the_task_and_is_told(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    run = begin(worker, loop, str(path), LOOPS["c"])
    future = worker.begin(run)
    pid = pid_in(path)
    subreaper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(subreaper, signal.SIGKILL)
    assert isinstance(future.exception(SECONDS), JobFailed)
    until(lambda: not alive(pid))
    until(lambda: worker.statuses() == [S.RUNNING, S.ERROR])
    assert "was lost" in (worker.end.error or "")


def test_nothing_is_lost_where_the_task_has_switched_off_blocking(worker: Worker) -> None:
    """As programs do that inherit its output: node, ssh."""

    def count(n: int) -> None:
        os.set_blocking(1, False)
        for i in range(n):
            print(f"{i:0100d}")

    assert outcome(worker, count, 20_000) is None
    assert worker.log().split() == [f"{i:0100d}" for i in range(20_000)]
