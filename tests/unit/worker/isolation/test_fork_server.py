"""The fork server from which the processes of tasks come: real processes, also when it dies."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.errors import ArgumentError
from girder_dask.files.transform_base import Transform
from girder_dask.jobs import JobStatus
from girder_dask.utils.processes import running_processes
from girder_dask.worker.isolation import fork_server
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.propagation import subprocess_propagation
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import Worker, captured

S = JobStatus


@pytest.fixture(scope="module")
def shared() -> Iterator[ForkServerSupervisor]:
    """A server that the tests here leave as it is. It has imported NumPy ahead."""
    kept = ForkServerSupervisor(["numpy.random"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OF_THE_SERVER", "its own")
        kept.start()
        assert kept.wait(SECONDS) is not None
    yield kept
    kept.close()


@pytest.fixture
def open_worker(tmp_path: Path) -> Iterator[Callable[[ForkServerSupervisor], Worker]]:
    opened: list[Worker] = []

    def start(supervisor: ForkServerSupervisor) -> Worker:
        opened.append(Worker(tmp_path / str(len(opened)), supervisor))
        return opened[-1]

    yield start
    for worker in opened:
        worker.close()
        worker.context.fork_server_supervisor.close()


@pytest.fixture
def worker(tmp_path: Path, shared: ForkServerSupervisor) -> Iterator[Worker]:
    opened = Worker(tmp_path, shared)
    yield opened
    opened.close()


def outcome(worker: Worker, function: Callable[..., Any] | None, *args: Any, **fields: Any) -> Any:
    return worker.outcome(function, *args, **{"isolation": "process", **fields})


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def grandparent() -> int:
    """Return the process that a task's subreaper comes from. To be run in a task."""
    status = Path(f"/proc/{os.getppid()}/stat").read_text()
    return int(status.rpartition(")")[2].split()[1])


def pid_of(supervisor: ForkServerSupervisor) -> int:
    server = supervisor.wait(SECONDS)
    assert server is not None
    return server.process.pid


# -- what a fork is ------------------------------------------------------------------------


def test_a_process_is_a_fork_of_the_server_and_serves_one_job(
    worker: Worker, shared: ForkServerSupervisor
) -> None:
    found = [outcome(worker, lambda: (grandparent(), os.getpid()), job_id=i) for i in "abc"]
    assert [server for server, _ in found] == [pid_of(shared)] * 3
    assert len({pid for _, pid in found}) == 3
    assert not any(alive(pid) for _, pid in found)


def test_random_numbers_differ_from_job_to_job(worker: Worker) -> None:
    def work() -> tuple[bool, float, float]:
        ahead = "numpy.random" in sys.modules
        import numpy as np

        return ahead, float(np.random.random()), random.random()  # noqa: S311 - not for secrets

    ahead, ours, theirs = zip(*(outcome(worker, work, job_id=i) for i in "abc"), strict=True)
    assert ahead == (True, True, True)
    assert len(set(ours)) == len(set(theirs)) == 3


def test_its_environment_and_directory_are_those_that_a_new_process_would_have(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variable = subprocess_propagation.RUN_VARIABLE

    def work() -> tuple[Any, ...]:
        import time

        seen = subprocess.run(
            ["sh", "-c", f"echo $OF_THE_SERVER $OF_THE_WORKER ${variable}"],
            stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.split()  # fmt: skip
        signals = [signal.getsignal(n) for n in (signal.SIGCHLD, signal.SIGINT)]
        return "OF_THE_SERVER" in os.environ, seen, Path.cwd(), time.tzname, sys.path, signals

    monkeypatch.setenv("OF_THE_WORKER", "changed")
    monkeypatch.setenv("TZ", "XYZ-3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "tasks"))
    run = worker.run(work, isolation="process")
    worker.begin(run).result(SECONDS)
    until(lambda: S.SUCCESS in worker.statuses())
    from girder_dask.protocol.payload import open_value

    has, seen, cwd, zone, path, signals = open_value(worker.end.result or b"", unpickle=True)
    assert not has
    assert seen == ["changed", run.control.id]
    assert cwd.parent == worker.context.directory, "it is that of the run"
    assert zone == ("XYZ", "XYZ")
    assert path == sys.path
    assert signals == [signal.SIG_DFL, signal.default_int_handler]


def test_it_has_all_that_it_needs_from_the_server(worker: Worker) -> None:
    """An import would take each job longer than all the rest."""
    worker.context.api_url = "http://girder/api/v1"
    found = set(outcome(worker, lambda: list(sys.modules), token="SECRET"))
    modules = ["girder_dask.worker.isolation.fork_server", *fork_server.TASK_MODULES]
    code = f"import sys, numpy.random, {', '.join(modules)}; print(*sys.modules)"
    ahead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found - set(ahead.stdout.split()) == {"runpy"}


def test_several_threads_launch_at_once(worker: Worker) -> None:
    runs = [worker.run(lambda n: n, n, job_id=str(n), isolation="process") for n in range(12)]
    assert [f.result(SECONDS) for f in [worker.begin(run) for run in runs]] == list(range(12))


def test_no_descriptor_of_the_server_or_of_another_job_is_open_in_it(
    worker: Worker, open_worker: Callable[[ForkServerSupervisor], Worker]
) -> None:
    def work() -> list[str]:
        found = []
        for fd in Path("/proc/self/fd").iterdir():
            try:
                target = str(fd.readlink())
            except OSError:
                continue  # that of the listing
            found.append("a file" if "(deleted)" in target else target.partition(":")[0])
        return sorted(found)

    other = worker.begin(
        worker.run(lambda: threading.Event().wait(1.0), job_id="b", isolation="process")
    )
    anew = open_worker(ForkServerSupervisor())
    anew.context.fork_server_supervisor.close()
    with captured():
        assert outcome(worker, work) == outcome(anew, work)
    assert other.result(SECONDS) is False


# -- the death of the server ---------------------------------------------------------------


def test_a_server_that_dies_is_started_again_and_no_job_is_lost(
    open_worker: Callable[[ForkServerSupervisor], Worker],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    worker = open_worker(ForkServerSupervisor())
    supervisor = worker.context.fork_server_supervisor
    supervisor.start()
    first = pid_of(supervisor)

    def waits(path: str) -> int:
        import time

        Path(path).touch()
        while not Path(path).with_name("go").exists():
            time.sleep(0.01)
        return 7

    at_work = worker.begin(worker.run(waits, str(tmp_path / "begun"), isolation="process"))
    until((tmp_path / "begun").exists)
    with caplog.at_level(logging.WARNING, "girder_dask.worker.isolation.fork_server_supervisor"):
        os.kill(first, signal.SIGKILL)
        until(lambda: not alive(first))
        server = outcome(worker, grandparent, job_id="b")
        until(lambda: supervisor.server is not None and pid_of(supervisor) != first)
    assert server in (os.getpid(), pid_of(supervisor)), "it was started anew, or by the next server"
    assert outcome(worker, grandparent, job_id="c") == pid_of(supervisor)
    (tmp_path / "go").touch()
    assert at_work.result(SECONDS) == 7
    ends = [r.getMessage() for r in caplog.records if "has ended" in r.getMessage()]
    assert len(ends) == 1
    assert "exit code -9" in ends[0]


def test_a_server_that_does_not_answer_is_done_without_and_said_once(
    open_worker: Callable[[ForkServerSupervisor], Worker],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from girder_dask.worker.isolation import launcher

    patience_s = launcher._FORK_TIMEOUT_S
    monkeypatch.setattr(launcher, "_FORK_TIMEOUT_S", 0.2)
    worker = open_worker(ForkServerSupervisor())
    supervisor = worker.context.fork_server_supervisor
    supervisor.start()
    pid = pid_of(supervisor)
    os.kill(pid, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING, "girder_dask.worker.isolation.fork_server_supervisor"):
        assert outcome(worker, grandparent) == os.getpid(), "it was started anew"
        monkeypatch.setattr(launcher, "_FORK_TIMEOUT_S", patience_s)
        until(lambda: supervisor.server is not None and pid_of(supervisor) != pid)
    assert outcome(worker, grandparent, job_id="b") == pid_of(supervisor)
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("The fork server of this worker does not answer and is restarted.")


def test_it_ends_with_what_has_it(open_worker: Callable[[ForkServerSupervisor], Worker]) -> None:
    supervisor = open_worker(ForkServerSupervisor()).context.fork_server_supervisor
    supervisor.start()
    pid = pid_of(supervisor)
    spare = until(lambda: spare_of(pid))
    supervisor.close()
    assert not alive(pid)
    until(lambda: not any(alive(each) for each in spare))
    assert supervisor.server is None


@pytest.mark.parametrize("which", [0, 1], ids=["subreaper", "task"])
def test_a_spare_process_that_is_killed_is_replaced(
    open_worker: Callable[[ForkServerSupervisor], Worker], which: int
) -> None:
    worker = open_worker(ForkServerSupervisor())
    worker.context.fork_server_supervisor.start()
    pid = pid_of(worker.context.fork_server_supervisor)
    spare = until(lambda: spare_of(pid))
    os.kill(spare[which], signal.SIGKILL)
    until(lambda: not alive(spare[which]))
    server = outcome(worker, grandparent)
    # A subreaper without a process of a task leaves the launch of one to the worker.
    assert server == (pid, os.getpid())[which]
    assert outcome(worker, lambda: 7, job_id="b") == 7


def spare_of(server: int) -> list[int]:
    """Return the subreaper and the process of a task that a server has forked ahead."""
    parents = {process.pid: process.parent for process in running_processes()}
    for task, subreaper in parents.items():
        if parents.get(subreaper) == server:
            return [subreaper, task]
    return []


def test_where_there_is_no_pidfd_processes_start_anew(
    open_worker: Callable[[ForkServerSupervisor], Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(1, "Operation not permitted")

    worker = open_worker(ForkServerSupervisor())
    with caplog.at_level(logging.WARNING, "girder_dask.worker.isolation.fork_server_supervisor"):
        monkeypatch.setattr(os, "pidfd_open", refuse)
        found = [outcome(worker, grandparent, job_id=i) for i in "ab"]
    assert found == [os.getpid()] * 2
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("This system has no pidfd (Linux 5.3 has)")


ORPHAN = """
import os, pathlib, sys, threading
sys.path[:0] = {path!r}
from tests.support.run_worker import Worker
from tests.unit.worker.isolation.test_fork_server import grandparent
worker = Worker(pathlib.Path({directory!r}))
server = worker.run(grandparent, isolation="process")()
child = os.fork()  # as a task of a thread may: it has all that is open here, and goes on
if child == 0:
    threading.Event().wait()
def work(path):
    pathlib.Path(path).write_text(f"{{os.getpid()}} {{os.getppid()}} {server} {child}\\n".format(
        server=server, child=child))
    threading.Event().wait()
worker.begin(worker.run(work, {pids!r}, isolation="process"))
threading.Event().wait()
"""


def test_no_process_is_left_when_the_worker_is_killed_though_a_fork_of_it_goes_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pids"
    code = ORPHAN.format(
        path=[str(Path(__file__).parents[4])], directory=str(tmp_path), pids=str(path),
        server="{server}", child="{child}",
    )  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            until(lambda: path.exists() and path.read_text().endswith("\n"))
            *ours, fork = (int(pid) for pid in path.read_text().split())
            assert all(alive(pid) for pid in (*ours, fork))
        finally:
            process.kill()
    try:
        until(lambda: not any(alive(pid) for pid in ours))
        assert alive(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


# -- what is imported ahead ----------------------------------------------------------------


def test_modules_that_cannot_be_imported_ahead_are_said_and_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    open_worker: Callable[[ForkServerSupervisor], Worker],
) -> None:
    (tmp_path / "has_threads.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    (tmp_path / "leaves_early.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "prints.py").write_text(
        "import signal\nsignal.signal(signal.SIGCHLD, print)\nprint('said once', end='')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = open_worker(ForkServerSupervisor(["no_such", "has_threads", "leaves_early", "prints"]))

    def work() -> list[str]:
        assert signal.getsignal(signal.SIGCHLD) is print
        return [m for m in ("has_threads", "leaves_early", "prints") if m in sys.modules]

    with caplog.at_level(logging.WARNING, "girder_dask.worker.isolation.fork_server_supervisor"):
        worker.context.fork_server_supervisor.start()
        assert worker.context.fork_server_supervisor.wait(SECONDS) is not None
        assert outcome(worker, work) == ["prints"]
    assert worker.log() == ""
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "no_such (girder.worker.preimport) cannot be imported in advance: ModuleNotFound" in said
    assert (
        "leaves_early (girder.worker.preimport) cannot be imported in advance: SystemExit" in said
    )
    assert "has_threads (girder.worker.preimport) starts threads when it is imported" in said


def test_a_module_that_ends_the_server_is_not_imported_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    open_worker: Callable[[ForkServerSupervisor], Worker],
) -> None:
    (tmp_path / "crashes.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = open_worker(ForkServerSupervisor(["crashes"]))
    with caplog.at_level(logging.WARNING, "girder_dask.worker.isolation.fork_server_supervisor"):
        worker.context.fork_server_supervisor.start()
        pid = pid_of(worker.context.fork_server_supervisor)
    assert outcome(worker, grandparent) == pid
    (told,) = (record.getMessage() for record in caplog.records)
    assert "has ended (exit code -6) while it imported crashes" in told


# -- what the worker says ------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, "thread", "process"])
def test_a_worker_that_gives_each_job_a_process_does_so_whatever_is_asked(
    worker: Worker, asked: str | None
) -> None:
    worker.context.isolation = "process"
    assert outcome(worker, os.getpid, isolation=asked) != os.getpid()
    told = (
        "This worker runs each job in a process of its own (girder.worker.isolation), even "
        "one with isolation='thread'.\n"
    )
    assert worker.log() == (told if asked == "thread" else "")


@pytest.mark.parametrize("asked", [None, "thread", "process"])
def test_another_worker_gives_a_process_to_who_asks_for_one(
    worker: Worker, asked: str | None
) -> None:
    assert (outcome(worker, os.getpid, isolation=asked) == os.getpid()) == (asked != "process")


def test_an_argument_that_cannot_travel_is_an_error_that_says_what_to_do(worker: Worker) -> None:
    class Lock(Transform):
        def transform(self) -> Any:
            return threading.Lock()

    error = outcome(worker, lambda lock: lock.locked(), Lock())
    assert isinstance(error, ArgumentError)
    assert "girder.worker.isolation: thread" in str(error)
