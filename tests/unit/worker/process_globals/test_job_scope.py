"""What a job does to its process, and that the next one finds nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import locale
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from girder_dask import current_job, task
from girder_dask.cli.doctor import Facts, examine
from girder_dask.diagnostics import describe_process
from girder_dask.files.transform_base import ResultTransform
from girder_dask.jobs import JobStatus
from girder_dask.utils import working_directory
from girder_dask.worker.process_globals import job_scope
from girder_dask.worker.process_globals.job_scope import _forget_modules
from girder_dask.worker.process_setup import warn_of_shared_directory
from tests.support.deadline import SECONDS
from tests.support.run_worker import Worker, captured

S = JobStatus
RESTORED = "It was restored."


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    opened = Worker(tmp_path)
    opened.context.grace_s = 0.3
    job_scope.install()
    yield opened
    opened.close()
    job_scope.uninstall()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the system refuse what a directory of one's own needs."""

    def unshare() -> None:
        raise PermissionError(1, "Operation not permitted")

    def forget() -> None:
        working_directory.unsupported_reason.cache_clear()
        job_scope._settings_restorer.cache_clear()

    monkeypatch.setattr(working_directory, "_unshare", unshare)
    forget()
    yield
    forget()


def outcome(worker: Worker, *args: Any, **fields: Any) -> Any:
    with captured():
        return worker.outcome(*args, **fields)


# -- the working directory -----------------------------------------------------------------

barrier = threading.Barrier(4)


class Sent(ResultTransform):
    """Stands for an upload: returns what is at a path."""

    def transform(self, data: Any) -> Any:
        path = Path(self.cwd or "", data)
        return path.read_text(), Path(data).read_text()


@task
def answers(n: int, *, wait: bool = True) -> str:
    """Write a file of the same name as all others do."""
    assert list(Path().iterdir()) == []
    assert Path.cwd() == current_job().work_dir
    Path("answer.txt").write_text(str(n))
    if wait:
        barrier.wait(SECONDS)
    return "answer.txt"


def test_four_jobs_at_once_send_the_file_that_each_has_written(worker: Worker) -> None:
    before = Path.cwd()
    runs = [
        worker.run(None, n, task=answers.name, hooks=[Sent()], job_id=f"job{n}") for n in range(4)
    ]
    futures = [worker.begin(run) for run in runs]
    assert [future.result(SECONDS) for future in futures] == [(str(n), str(n)) for n in range(4)]
    assert Path.cwd() == before
    assert {worker.threads.submit(Path.cwd).result(SECONDS) for _ in range(8)} == {before}
    assert list(worker.context.directory.glob("*")) == []


@task
def moves(n: int, **_: Any) -> str:
    """Return a path that is relative to another directory."""
    Path("below").mkdir()
    os.chdir("below")
    Path("answer.txt").write_text(str(n))
    return "answer.txt"


@pytest.mark.parametrize("task_name", [answers.name, moves.name])
def test_a_relative_path_of_a_process_is_found(worker: Worker, task_name: str) -> None:
    sent = worker.outcome(
        None, 7, kwargs={"wait": False}, task=task_name, isolation="process", hooks=[Sent()]
    )
    assert sent == ("7", "7")
    assert list(worker.context.directory.glob("*")) == []


class Absolute(ResultTransform):
    """One of ours, which needs no directory of its own."""

    def transform(self, data: Any) -> str:
        return Path(self.cwd or "", data).read_text()


@pytest.mark.usefixtures("refused")
def test_a_process_has_its_directory_wherever_it_runs(worker: Worker) -> None:
    sent = worker.outcome(None, 7, task=moves.name, isolation="process", hooks=[Absolute()])
    assert sent == "7"


def test_the_inputs_are_not_in_the_directory_of_the_task(worker: Worker) -> None:
    class Input:
        work_dir: Path | None = None

        def transform(self) -> str:
            assert self.work_dir is not None
            (self.work_dir / "input.txt").write_text("an input")
            return str(self.work_dir / "input.txt")

        def cleanup(self) -> None:
            pass

    def work(path: str) -> tuple[list[Path], str]:
        return list(Path().iterdir()), Path(path).read_text()

    assert worker.outcome(work, Input()) == ([], "an input")
    assert list(worker.context.directory.glob("*")) == []


def test_a_directory_that_goes_breaks_no_later_job(worker: Worker) -> None:
    before = Path.cwd()

    def work() -> None:
        gone = tempfile.mkdtemp()
        os.chdir(gone)
        Path(gone).rmdir()

    for n in range(4):
        assert worker.outcome(work, job_id=f"gone{n}") is None
    for n in range(4):
        assert worker.outcome(lambda: Path("x").write_text("y"), job_id=f"later{n}") == 1
    assert worker.threads.submit(Path.cwd).result(SECONDS) == before
    assert worker.log("gone0") == "", "it needs no word, as it concerned nobody"


@pytest.mark.usefixtures("refused")
def test_where_it_is_refused_the_directory_is_put_back(tmp_path: Path) -> None:
    worker, before = Worker(tmp_path), Path.cwd()
    job_scope.install()

    def work() -> None:
        gone = tempfile.mkdtemp()
        os.chdir(gone)
        os.umask(0o77)
        Path(gone).rmdir()

    try:
        worker.outcome(work)
        assert Path.cwd() == before
        assert os.umask(0o22) == 0o22
    finally:
        job_scope.uninstall()
        worker.close()
    assert [line.partition(" has changed ")[2].partition(",")[0] for line in lines(worker)] == [
        "the working directory",
        "the umask",
    ]


def test_a_module_of_one_job_is_not_that_of_another(worker: Worker) -> None:
    def work(value: int) -> int:
        Path("helper_of_jobs.py").write_text(f"value = {value}\n")
        sys.path.insert(0, str(Path.cwd()))
        import helper_of_jobs  # type: ignore[import-not-found]

        return int(helper_of_jobs.value)

    path = list(sys.path)
    assert [worker.outcome(work, n, job_id=f"job{n}") for n in range(3)] == [0, 1, 2]
    assert sys.path == path


def lines(worker: Worker, job_id: str = "a") -> list[str]:
    return worker.log(job_id).splitlines()


# -- the environment -----------------------------------------------------------------------


def test_a_variable_is_that_of_the_job(worker: Worker) -> None:
    def work() -> str:
        os.environ["GIRDER_DASK_A_VARIABLE"] = "own"
        return os.environ["GIRDER_DASK_A_VARIABLE"]

    assert worker.outcome(work) == "own"
    assert "GIRDER_DASK_A_VARIABLE" not in os.environ
    assert worker.log() == ""


def test_what_the_module_of_a_task_sets_stays(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = sys.getrecursionlimit()
    monkeypatch.setenv("GIRDER_DASK_A_VARIABLE", "")
    (tmp_path / "sets_at_import.py").write_text(
        "import os, sys\n"
        "from girder_dask import task\n"
        "os.environ['GIRDER_DASK_A_VARIABLE'] = 'of the module'\n"
        "sys.setrecursionlimit(sys.getrecursionlimit() + 1)\n"
        "@task\ndef noop(): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        worker.outcome(None, task="sets_at_import:noop")
        assert sys.getrecursionlimit() == limit + 1
        assert os.environ["GIRDER_DASK_A_VARIABLE"] == "of the module"
        assert worker.log() == ""
    finally:
        sys.setrecursionlimit(limit)


# -- what belongs to the process -----------------------------------------------------------


def _recursion() -> None:
    sys.setrecursionlimit(12_345)


def _locale() -> None:
    locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")


def _zone() -> None:
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    assert time.tzname[0] == "JST"


def _limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


def _gc() -> None:
    gc.disable()
    gc.set_threshold(50_000)


def _timer() -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, 3600)


def _hooks() -> None:
    sys.excepthook = threading.excepthook = lambda *_: None


def _certificates() -> None:
    ssl._create_default_https_context = ssl._create_unverified_context


def _tempdir() -> None:
    tempfile.tempdir = str(Path.cwd())


def _sockets() -> None:
    socket.setdefaulttimeout(0.5)


def _profile() -> None:
    sys.setprofile(lambda *_: None)


def _mask() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])


def _affinity() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


HABITS: list[tuple[Callable[[], None], Callable[[], Any], str]] = [
    (_recursion, sys.getrecursionlimit, "the recursion limit"),
    (_locale, lambda: locale.setlocale(locale.LC_ALL), "the locale"),
    (_zone, lambda: (time.tzname, os.environ.get("TZ")), "the time zone"),
    (_limit, lambda: resource.getrlimit(resource.RLIMIT_NOFILE), "the resource limits"),
    (_gc, lambda: (gc.isenabled(), gc.get_threshold()), "the settings of gc"),
    (_timer, lambda: signal.getitimer(signal.ITIMER_VIRTUAL), "a timer"),
    (_hooks, lambda: (sys.excepthook, threading.excepthook), "sys.excepthook"),
    (_certificates, lambda: ssl._create_default_https_context, "the certificate checks"),
    (_tempdir, lambda: tempfile.tempdir, "the directory of tempfile"),
    (_sockets, socket.getdefaulttimeout, "the default timeout of sockets"),
    (_profile, sys.getprofile, "sys.setprofile()"),
    (_mask, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []), "the blocked signals"),
    (_affinity, lambda: os.sched_getaffinity(0), "the CPU affinity"),
]


@pytest.mark.parametrize(
    ("habit", "state", "name"), HABITS, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_a_task_changes_is_put_back(
    worker: Worker, habit: Callable[[], None], state: Callable[[], Any], name: str
) -> None:
    before = state()
    run = worker.run(None, task="m:f")
    run._function = lambda _call: habit  # type: ignore[method-assign, assignment]

    def ended() -> Any:
        before_in_thread = state()
        run()
        return before_in_thread, state()

    before_in_thread, after = worker.threads.submit(ended).result(SECONDS)
    assert (state(), after) == (before, before_in_thread)
    log = "".join(e.log or "" for e in worker.events)
    worker.outcome(lambda: None, job_id="next")
    log = worker.log()
    assert f"The task has changed {name}" in log
    assert RESTORED in log
    assert worker.log("next") == ""


def test_an_event_loop_that_was_closed_is_not_that_of_the_next(worker: Worker) -> None:
    def work() -> bool:
        with contextlib.suppress(RuntimeError):
            asyncio.get_event_loop()
            return False
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.close()
        return True

    assert all(worker.outcome(work, job_id=f"job{n}") for n in range(5))


def test_a_job_is_not_blamed_for_another(worker: Worker) -> None:
    """The innocent one ends while the other, which has set it, goes on."""
    before = sys.getrecursionlimit(), sys.excepthook
    begun, changed, go_on = threading.Event(), threading.Event(), threading.Event()

    def guilty() -> None:
        begun.wait(SECONDS)
        sys.setrecursionlimit(23_456)
        sys.excepthook = lambda *_: None
        changed.set()
        go_on.wait(SECONDS)

    def innocent() -> tuple[int, bool]:
        begun.set()
        changed.wait(SECONDS)
        return sys.getrecursionlimit(), True

    runs = [worker.run(None, task="m:f", job_id=name) for name in ("guilty", "innocent")]
    for run, function in zip(runs, (guilty, innocent), strict=True):
        run._function = lambda _call, f=function: f  # type: ignore[method-assign, assignment, misc]
    first, second = map(worker.begin, runs)
    assert second.result(SECONDS) == (23_456, True)
    assert sys.getrecursionlimit() == 23_456, "who has set it still runs"
    go_on.set()
    first.result(SECONDS)
    assert (sys.getrecursionlimit(), sys.excepthook) == before
    worker.outcome(lambda: None, job_id="next")
    assert worker.log("innocent") == ""
    assert "The task has changed the recursion limit" in worker.log("guilty")
    assert "This task, or a job that ran at the same time, has changed sys.excepthook" in (
        worker.log("guilty")
    ), "who has assigned that nobody knows"


def test_what_cannot_be_put_back_is_told(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("not allowed")

    run = worker.run(None, task="m:f")
    run._function = lambda _call: _sockets  # type: ignore[method-assign, assignment]
    state = job_scope._settings_restorer()
    name = "the default timeout of sockets"
    items = [replace(i, restore=refuse) if i.name == name else i for i in state._settings]
    monkeypatch.setattr(state, "_settings", items)
    try:
        worker.begin(run).result(SECONDS)
        worker.outcome(lambda: None, job_id="next")
    finally:
        socket.setdefaulttimeout(None)
    assert "It cannot be restored (not allowed), so later jobs have it" in worker.log()
    assert worker.log("next") == "", "it is told once"


HANGS = """
import sys, threading
from girder_dask.worker.interruption.thread_interrupter import withdraw_interrupt

def work():
    withdraw_interrupt()
    sys.setprofile(lambda *_: None)
    (lambda: None)()
    sys.setprofile(None)
    print("went on")

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_a_profiler_does_not_hang_a_worker_that_was_interrupted() -> None:
    shown = subprocess.check_output([sys.executable, "-c", HANGS], text=True, timeout=SECONDS)
    assert shown == "went on\n"


ALARM = """
import asyncio, logging, signal, threading
from girder_dask.worker.termination import AlarmSignals

async def main():
    alarms = AlarmSignals()
    thread = threading.Thread(target=signal.setitimer, args=(signal.ITIMER_REAL, 0.02))
    thread.start()
    thread.join()
    await asyncio.sleep(0.2)
    alarms.close()
    print("went on", signal.getsignal(signal.SIGALRM).name)

logging.basicConfig()
asyncio.run(main())
"""


def test_an_alarm_of_a_task_does_not_end_the_worker() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ALARM], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert ended.stdout == "went on SIG_DFL\n"
    assert "This worker received SIGALRM and ignored it" in ended.stderr


@pytest.mark.usefixtures("refused")
def test_a_refusal_is_told_to_operators(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_shared_directory()
    assert "no working directory of their own ([Errno 1] Operation not permitted)" in caplog.text
    worker = {**describe_process(None), "api_url": "http://girder/api/v1", "girder_error": None}
    (check,) = [
        check
        for check in examine(Facts(here=worker, workers={"tcp://w:1": worker}))
        if check.name == "Jobs on worker tcp://w:1 share a working directory"
    ]
    assert check.ok, "nothing is broken"
    assert "girder.worker.isolation" in check.detail


def test_the_modules_of_a_job_are_forgotten_while_others_are_imported(tmp_path: Path) -> None:
    """Whatever else runs may import at any moment; garbage collection brings such moments."""
    names = [f"imported_meanwhile_{n}" for n in range(1000)]
    left = iter(names)

    def imports(phase: str, _info: dict[str, int]) -> None:
        for name in itertools.islice(left, 1 if phase == "start" else 0):
            sys.modules[name] = types.ModuleType(name)

    of_the_job = types.ModuleType("of_the_job")
    of_the_job.__file__ = str(tmp_path / "of_the_job.py")
    sys.modules["of_the_job"] = of_the_job
    threshold = gc.get_threshold()
    gc.callbacks.append(imports)
    gc.set_threshold(1)
    try:
        _forget_modules(tmp_path, 0)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(imports)
        for name in names:
            sys.modules.pop(name, None)
    assert sys.modules.pop("of_the_job", None) is None
