"""What a task does to ``sys.stdout`` and ``sys.stderr`` concerns that task alone."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import doctest
import importlib
import io
import os
import pickle
import subprocess
import sys
import threading
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
import pytest

from tests.support.deadline import until
from tests.support.run_worker import Worker, captured

LINES = 200


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    opened = Worker(tmp_path)
    with captured():
        yield opened
        opened.close()
    meeting.clear()


# -- habits --------------------------------------------------------------------------------

# Each runs ``work`` and returns what it has caught of its output, or None if that stays in the log.


def redirects(work: Callable[[], None]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        work()
    return text.getvalue()


def redirects_stderr_too(work: Callable[[], None]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        work()
        print("to stderr", file=sys.stderr)
    assert text.getvalue().endswith("to stderr\n")
    return text.getvalue().removesuffix("to stderr\n")


def assigns_and_forgets(work: Callable[[], None]) -> str:
    sys.stdout = text = io.StringIO()
    work()
    return text.getvalue()


def assigns_a_closed_one(work: Callable[[], None]) -> str:
    text = redirects(work)
    sys.stdout = io.StringIO()
    sys.stdout.close()
    return text


def assigns_none(work: Callable[[], None]) -> str:
    text = redirects(work)
    sys.stdout = None  # type: ignore[assignment]
    print("nowhere")
    return text


def deletes(work: Callable[[], None]) -> str:
    text = redirects(work)
    del sys.stdout
    with pytest.raises(RuntimeError, match=r"lost sys\.stdout"):
        print("nowhere")
    return text


def closes(work: Callable[[], None]) -> None:
    sys.stdout.close()
    sys.stderr.close()
    work()


class Tee:
    def __init__(self) -> None:
        self.stream = sys.stdout

    def write(self, text: str) -> int:
        return self.stream.write(text.upper())

    def flush(self) -> None:
        self.stream.flush()


def tees(work: Callable[[], None]) -> None:
    sys.stdout = Tee()  # type: ignore[assignment]
    work()


def wraps_the_buffer(work: Callable[[], None]) -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8", line_buffering=False)
    work()


def nests(work: Callable[[], None]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as outer:
        with contextlib.redirect_stdout(io.StringIO()) as inner, mock.patch("sys.stdout"):
            print("to the mock")
        assert not inner.getvalue()
        with mock.patch("sys.stdout", new_callable=io.StringIO) as patched:
            print("patched")
        assert patched.getvalue() == "patched\n"
        work()
    return outer.getvalue()


def reloads_sys(work: Callable[[], None]) -> str:
    importlib.reload(sys)
    return redirects(work)


def goes_back_to_the_original(work: Callable[[], None]) -> None:
    sys.stdout = io.StringIO()
    sys.stdout = sys.__stdout__
    work()


def runs_click(work: Callable[[], None]) -> str:
    click = importlib.import_module("click")
    testing = importlib.import_module("click.testing")
    return str(testing.CliRunner().invoke(click.command()(work)).output)


def runs_rich_live(work: Callable[[], None]) -> None:
    console = importlib.import_module("rich.console").Console()
    with importlib.import_module("rich.live").Live(console=console, auto_refresh=False):
        work()


def runs_ipython(work: Callable[[], None]) -> str:
    capture = importlib.import_module("IPython.utils.capture")
    with capture.capture_output() as caught:
        work()
    return str(caught.stdout)


def runs_doctest(work: Callable[[], None]) -> str:
    module = types.ModuleType("m", ">>> print('seen')\nseen\n")
    assert doctest.testmod(module).failed == 0
    return redirects(work)


def runs_unittest(work: Callable[[], None]) -> str:
    text = io.StringIO()

    class Case(unittest.TestCase):
        def test(self) -> None:
            work()
            text.write(sys.stdout.getvalue())  # type: ignore[attr-defined]

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Case)
    assert unittest.TextTestRunner(io.StringIO(), buffer=True).run(suite).wasSuccessful()
    return text.getvalue()


def works_in_threads(work: Callable[[], None]) -> str:
    def in_thread() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    return redirects(in_thread)


CATCHING = [
    redirects,
    redirects_stderr_too,
    assigns_and_forgets,
    assigns_a_closed_one,
    assigns_none,
    deletes,
    nests,
    reloads_sys,
    runs_click,
    runs_ipython,
    runs_doctest,
    runs_unittest,
    works_in_threads,
]
SHOWING = [closes, tees, wraps_the_buffer, goes_back_to_the_original, runs_rich_live]


def lines(name: str) -> str:
    return "".join(f"{name} {n}\n" for n in range(LINES))


#: Where the jobs of one test meet, so that they write at the same time. It cannot be pickled.
meeting: list[threading.Barrier] = []


def meet() -> None:
    for barrier in meeting:
        barrier.wait(30)


def write_lines(habit: Callable[..., Any], name: str) -> Any:
    def work() -> None:
        meet()
        for n in range(LINES):
            print(name, n)
        meet()

    return habit(work)


habits = pytest.mark.parametrize("habit", [*CATCHING, *SHOWING], ids=lambda habit: habit.__name__)


@habits
def test_a_habit_concerns_its_own_job(worker, habit):
    """Beside it, another job prints; afterwards others do, in the same threads."""
    worker.context.max_result = 100_000
    meeting[:] = [threading.Barrier(2)]
    first = worker.begin(worker.run(write_lines, habit, "own", job_id="first"))
    other = worker.begin(worker.run(write_lines, tees, "other", job_id="other"))
    value = first.result(60)
    other.result(60)
    until(lambda: len(worker.ended) == 2)
    if habit in CATCHING:
        assert value == lines("own")
        assert lines("own") not in worker.log("first")
    else:
        assert worker.log("first").lower().replace("\r", "").count("own ") == LINES
    assert worker.log("other") == lines("OTHER")
    assert "OTHER" not in worker.log("first")
    for n in range(4):  # as many as there are threads
        worker.outcome(lambda: print("later"), job_id=f"later{n}")
        assert worker.log(f"later{n}") == "later\n"


def all_habits() -> dict[str, Any]:
    values = {}
    for habit in [*CATCHING, *SHOWING]:
        print(f"<{habit.__name__}>")
        values[habit.__name__] = write_lines(habit, "own")
        with contextlib.suppress(AttributeError, ValueError):
            sys.stdout.flush()
        sys.stdout = sys.__stdout__  # which leads to the log
    print("<>")
    return values


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    """Give what each habit returns in one process of a task, and the log of all."""
    worker = Worker(tmp_path_factory.mktemp("process"))
    try:
        worker.context.max_result = 1_000_000
        value = worker.outcome(all_habits, isolation="process")
        assert isinstance(value, dict), worker.log()
        yield value, worker.log()
    finally:
        worker.close()


@habits
def test_a_habit_in_a_process_of_its_own(in_process, habit):
    values, log = in_process
    shown = log.partition(f"<{habit.__name__}>\n")[2].partition("<")[0]
    if habit in CATCHING:
        assert values[habit.__name__] == lines("own")
        assert not shown
    else:
        assert shown.lower().replace("\r", "").count("own ") == LINES


def test_a_stream_outside_of_jobs_is_left_alone(worker):
    before = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()) as outside:
        print("outside")
        worker.outcome(lambda: print("inside"))
        assert sys.stdout is outside
    assert sys.stdout is before
    assert outside.getvalue() == "outside\n"
    assert worker.log() == "inside\n"


# -- descriptors ---------------------------------------------------------------------------


def identity(fd: int) -> tuple[int, int]:
    return os.fstat(fd).st_dev, os.fstat(fd).st_ino


def leads_elsewhere(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(fd, 1)
    os.close(fd)
    os.write(1, b"caught\n")


def leads_there_and_back(path: str) -> None:
    kept = os.dup(1)
    leads_elsewhere(path)
    os.dup2(kept, 1)
    os.close(kept)


def closes_descriptor(_path: str) -> None:
    os.close(1)


def leads_elsewhere_by_c(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    ctypes.CDLL(None).dup2(fd, 1)
    os.close(fd)


@pytest.mark.parametrize("habit", [leads_elsewhere, closes_descriptor, leads_elsewhere_by_c])
def test_a_descriptor_is_put_back_at_the_end_of_the_job(worker, tmp_path, habit):
    before = identity(1)
    worker.outcome(habit, str(tmp_path / "caught"))
    assert identity(1) == before
    assert worker.log().startswith("The task has redirected descriptor 1 (standard output), ")
    assert "isolation='process'" in worker.log()


def test_nothing_is_said_of_a_descriptor_that_the_task_puts_back(worker, tmp_path):
    before = identity(1)
    worker.outcome(leads_there_and_back, str(tmp_path / "caught"))
    assert identity(1) == before
    assert (tmp_path / "caught").read_text() == "caught\n"
    assert worker.log() == ""


def redirects_while_another_ends(path: str) -> tuple[int, int]:
    leads_elsewhere(path)
    meet()  # the other ends
    meet()
    return identity(1)


def ends_meanwhile() -> None:
    meet()


def test_a_descriptor_is_put_back_by_the_job_that_has_led_it_elsewhere(worker, tmp_path):
    before = identity(1)
    path = tmp_path / "caught"
    meeting[:] = [threading.Barrier(2)]
    first = worker.begin(worker.run(redirects_while_another_ends, str(path), job_id="first"))
    worker.outcome(ends_meanwhile, job_id="other")
    meet()
    assert first.result(30) == (path.stat().st_dev, path.stat().st_ino)
    assert identity(1) == before
    until(lambda: len(worker.ended) == 2)
    assert worker.log("other") == ""
    assert worker.log("first").startswith("The task has redirected descriptor 1")


def closes_while_another_runs() -> None:
    os.close(1)
    meet()


def test_one_that_may_be_of_another_job_is_not_told_as_the_last_one_s(worker):
    before = identity(1)
    meeting[:] = [threading.Barrier(3)]
    first = worker.begin(worker.run(closes_while_another_runs, job_id="first"))
    other = worker.begin(worker.run(ends_meanwhile, job_id="other"))
    meet()
    first.result(30), other.result(30)
    until(lambda: len(worker.ended) == 2)
    assert identity(1) == before
    told = worker.log("first") + worker.log("other")
    assert told.startswith(
        "This task, or a job that ran at the same time, has redirected descriptor 1 ("
    )


def replaces_in_dict() -> None:
    sys.__dict__["stdout"] = io.StringIO()


def test_what_is_written_to_the_dict_of_sys_is_put_back(worker):
    front = sys.__dict__["stdout"]
    worker.outcome(replaces_in_dict)
    assert sys.__dict__["stdout"] is front
    assert worker.log().startswith("Something has replaced stdout in sys.__dict__")
    worker.outcome(lambda: print("later"), job_id="later")
    assert worker.log("later") == "later\n"


def test_a_job_writes_to_its_log_in_a_process_without_a_console():
    code = """
import sys
sys.stdout = sys.stderr = None
from girder_dask.worker.capture import output_capture
from girder_dask.worker.job_log.log import JobLog, capturing
output_capture.install()
log = JobLog()
with output_capture.capturing_run(log):
    print("heard")
    print("too", file=sys.stderr)
print("nobody")
assert sys.stdout is None
output_capture.uninstall()
assert sys.stdout is None
assert log.take() == "heard\\ntoo\\n"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("library", [pickle, cloudpickle], ids=lambda each: each.__name__)
@pytest.mark.parametrize("module", [sys, warnings], ids=lambda each: each.__name__)
def test_a_module_that_is_looked_up_by_job_can_be_pickled(worker, library, module):
    assert type(module) is not types.ModuleType
    data = library.dumps(module)
    assert library.loads(data) is module
    assert copy.deepcopy(module) is module
    code = "import pickle, sys; assert pickle.load(sys.stdin.buffer).__name__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, input=data)
