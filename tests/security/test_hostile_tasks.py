"""Hostile tasks that try to harm their worker and the other jobs on it.

Each ends in a state that is told, and the job after it runs as if it had not been.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import logging
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
from distributed.core import error_message

from girder_dask import current_job, task
from girder_dask.errors import CancelInterrupt, JobFailed, TransformError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import Unpicklable
from girder_dask.worker.process_globals import job_scope
from girder_dask.worker.process_globals.shared_settings import process_settings
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import Worker, captured

S = JobStatus


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    job_scope.install()
    opened = Worker(tmp_path)
    with captured():
        yield opened
    opened.close()
    job_scope.uninstall()


def raising(raised: BaseException) -> Callable[..., Any]:
    def method(*_args: Any) -> Any:
        raise raised

    return method


#: What Dask takes for the end of the worker, and what passes by ``except Exception``.
ENDS = (SystemExit(3), KeyboardInterrupt(), GeneratorExit(), CancelInterrupt(), MemoryError())
METHODS = ("__str__", "__repr__", "__reduce__", "__reduce_ex__", "__eq__", "__hash__")


def hostile(base: type, **members: Any) -> Any:
    return type("Hostile", (base,), members)


def in_place_of(name: str, found: Any) -> property:
    return property(lambda _self: raising(found)() if isinstance(found, SystemExit) else found)


def endless() -> BaseException:
    return hostile(ValueError, exceptions=property(lambda _: map(ValueError, itertools.count())))()


def chained(count: int) -> BaseException:
    error = ValueError("first")
    for n in range(count):
        error, cause = ValueError(n), error
        error.__cause__ = cause
    return error


def nested(depth: int, width: int) -> BaseException:
    """Return a group whose members are the same group: width ** depth exceptions."""
    error: Exception = ValueError("x")
    for _ in range(depth):
        error = ExceptionGroup("g", [error] * width)  # noqa: F821 - Python has it from 3.11 on
    return error


def noted(note: Any) -> BaseException:
    error = ValueError("x")
    error.__notes__ = note  # type: ignore[attr-defined]
    return error


def in_syntax() -> BaseException:
    error = SyntaxError("x")
    error.text, error.lineno, error.offset = "x", "no", object()  # type: ignore[assignment]
    error.msg = hostile(object, __str__=raising(SystemExit(3)))()
    return error


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    f"{method} raises {type(end).__name__}": (
        lambda method=method, end=end: hostile(ValueError, **{method: raising(end)})("x")
    )
    for method in METHODS
    for end in ENDS
} | {
    f"its {name} is {found!r}": (
        lambda name=name, found=found: hostile(ValueError, **{name: in_place_of(name, found)})()
    )
    for name, found in itertools.product(
        ("args", "__dict__", "__cause__", "__context__", "__traceback__", "__class__"),
        (5, SystemExit(3)),
    )
    if (name, found) != ("__class__", 5)
}
EXCEPTIONS |= {
    "the code of an exit": lambda: SystemExit(
        hostile(object, __repr__=raising(SystemExit(3)), __str__=raising(SystemExit(3)))()
    ),
    "an exit without a code": hostile(SystemExit, code=in_place_of("", SystemExit(3))),
    "a code that is no number": lambda: CalledProcessError("lots", "x"),  # type: ignore[arg-type]
    "one of ours": lambda: hostile(TransformError, __str__=raising(SystemExit(3)))("x"),
    "an interruption": hostile(CancelInterrupt, __str__=raising(CancelInterrupt())),
    "notes": lambda: noted(hostile(list, __iter__=raising(SystemExit(3)))([1])),
    "a syntax error": in_syntax,
    "an endless group": endless,
    "a group of numbers": hostile(ValueError, exceptions=[1, 2]),
    "a chain of 100,000": lambda: chained(100_000),
    "a group of 2 ** 40": lambda: nested(40, 2),
    "groups in each other": lambda: nested(20_000, 1),
    "100,000 exceptions": lambda: nested(1, 100_000),
    "100 MB": lambda: ValueError("x" * 100_000_000),
    "a name with newlines": type("A\nB", (ValueError,), {"__module__": "\ud800"}),
    "a module that is a number": hostile(ValueError, __module__=5),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_whatever_a_task_raises_its_end_is_told_and_its_worker_goes_on(
    worker: Worker, name: str
) -> None:
    def work() -> None:
        error = EXCEPTIONS[name]()
        raise error

    error = ended(worker, worker.begin(worker.run(work)))
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.end.error
    assert len(worker.log()) < 2_000_000
    # What Dask does with it in the worker, where SystemExit ends the process.
    assert isinstance(error, JobFailed)
    assert error_message(error)["exception_text"]
    assert_goes_on(worker)


def ended(worker: Worker, future: Future[Any]) -> BaseException:
    error = future.exception(SECONDS)
    until(lambda: worker.ended == ["a"])
    assert error is not None
    return error


def assert_goes_on(worker: Worker) -> None:
    assert worker.outcome(lambda: print("fine") or 7, job_id="next") == 7  # type: ignore[func-returns-value]
    assert worker.log("next") == "fine\n"


@pytest.mark.parametrize("end", ENDS[:3], ids=lambda end: type(end).__name__)
@pytest.mark.parametrize("method", ["__reduce__", "__reduce_ex__", "__sizeof__"])
def test_a_value_does_not_end_the_worker_when_it_is_packed_or_measured(
    worker: Worker, method: str, end: BaseException
) -> None:
    value = worker.begin(worker.run(lambda: Measured(method, end))).result(SECONDS)
    assert isinstance(value, Unpicklable)
    until(lambda: worker.statuses()[-1:] == [S.SUCCESS])
    assert_goes_on(worker)


class Measured:
    def __new__(cls, method: str, end: BaseException) -> Any:
        kind = type("Value", (), {method: raising(end)})
        globals()["Value"] = kind
        kind.__module__ = __name__
        return kind()


begun = threading.Event()


def take_for_ever(*_: Any) -> Any:
    begun.set()
    while True:
        threading.Event().wait(0.01)


@task
def raises_what_takes_for_ever(method: str) -> None:
    raise hostile(ValueError, **{method: take_for_ever})


@pytest.mark.parametrize("method", ["__str__", "__reduce__"])
def test_an_exception_that_takes_for_ever_to_show_is_interrupted(
    worker: Worker, method: str
) -> None:
    begun.clear()
    if method == "__reduce__":  # of what it holds: its own is not asked
        run = worker.run(None, task=raises_what_holds.name)
    else:
        run = worker.run(None, method, task=raises_what_takes_for_ever.name)
    future = worker.begin(run)
    assert begun.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    ended(worker, future)
    assert worker.statuses()[-1] == S.CANCELED
    assert_goes_on(worker)


@task
def raises_what_holds() -> None:
    raise ValueError(hostile(object, __reduce__=take_for_ever, __repr__=lambda _: "x")())


# -- text that is none ---------------------------------------------------------------------


def subclass_of(base: type) -> Any:
    """Return a subclass of text or bytes whose methods harm their caller."""
    harm = dict.fromkeys(
        ("encode", "decode", "__getitem__", "__add__", "__radd__", "__len__", "split"),
        raising(SystemExit(3)),
    )
    return type("Text", (base,), {**harm, "__str__": lambda self: self})


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_text_that_harms_who_works_with_it_is_plain_text_in_the_log(
    worker: Worker, isolation: str
) -> None:
    def work(text: Any, data: Any) -> None:
        manager = current_job().job_manager
        manager.write(text("one\n"))
        sys.stdout.writelines([text("two\n")])
        sys.stdout.buffer.write(data(b"three\n"))
        manager.updateProgress(total=4, current=3, message=text("four"))

    worker.outcome(work, subclass_of(str), subclass_of(bytes), isolation=isolation)
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert worker.log() == "one\ntwo\nthree\n"
    messages = [e.progress["message"] for e in worker.events if e.progress]
    assert messages[-1:] == ["four"]
    assert all(type(each) is str for each in messages)
    assert_goes_on(worker)


def test_what_cannot_be_sent_of_one_job_does_not_silence_the_others(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        sink: Any = current_job().job_manager._sink
        sink.take_event = raising(ValueError("spoiled"))
        print("lost")

    worker.outcome(work)
    assert_goes_on(worker)
    assert all(r.levelno != logging.CRITICAL for r in caplog.records)


# -- the state of the process --------------------------------------------------------------


def spoil_paths() -> None:
    sys.path = sys.meta_path = None  # type: ignore[assignment]
    sys.argv = 5  # type: ignore[assignment]


def spoil_with_objects() -> None:
    kind = hostile(str, __eq__=raising(SystemExit(3)), __hash__=str.__hash__)
    sys.path[:] = [kind(path) for path in sys.path]


def spoil_builtins() -> None:
    for name in ("bin", "oct", "input"):  # what nobody calls meanwhile
        setattr(builtins, name, raising(SystemExit(3)))
    del builtins.hex  # type: ignore[attr-defined]
    builtins.more = 3  # type: ignore[attr-defined]


def spoil_new_threads() -> None:
    threading.settrace(raising(SystemExit(3)))
    threading.setprofile(raising(SystemExit(3)))


def spoil_hooks() -> None:
    kind = hostile(object, **dict.fromkeys(("__eq__", "__call__", "__bool__"), raising(SystemExit)))
    sys.excepthook = sys.unraisablehook = threading.excepthook = kind()


@pytest.mark.parametrize(
    "work", [spoil_paths, spoil_with_objects, spoil_builtins, spoil_new_threads, spoil_hooks]
)
def test_state_of_the_process_is_put_back_whatever_a_task_leaves_there(
    worker: Worker, work: Callable[[], None]
) -> None:
    before = [item.read() for item in process_settings()]
    worker.outcome(work)
    after = [item.read() for item in process_settings()]
    changed = [
        item.name
        for item, one, other in zip(process_settings(), before, after, strict=True)
        if not item.is_same(one, other)
    ]
    assert changed == []
    did: list[int] = []
    thread = threading.Thread(target=did.append, args=(7,))
    thread.start()
    thread.join()
    assert did == [7]
    assert "It was restored." in worker.log()
    assert_goes_on(worker)


# -- a process of its own ------------------------------------------------------------------


def test_a_process_cannot_have_its_worker_open_a_pickle_that_is_no_value(
    worker: Worker, tmp_path: Path
) -> None:
    mark = tmp_path / "opened"

    def work() -> None:
        control = sockets_of_this_process()[0]
        for message in (pickle.dumps(Opened(str(mark))), b"", b"[[]]", b'["progress", 5]', b"\xff"):
            control.send(message)
        control.send(b'["progress", {"total": "many", "more": 1}]')
        control.send(b'["status", {}]')

    assert worker.outcome(work, isolation="process") is None
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert not mark.exists()
    assert_goes_on(worker)


class Opened:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def sockets_of_this_process() -> list[socket.socket]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                found.append(socket.socket(fileno=os.dup(int(entry.name))))
    return found


def test_a_process_has_nothing_of_the_worker_and_of_other_jobs_open(worker: Worker) -> None:
    def work() -> list[str]:
        names = []
        for entry in sorted(Path("/proc/self/fd").iterdir(), key=lambda path: int(path.name)):
            with contextlib.suppress(OSError):  # that of the listing itself
                names.append(str(entry.readlink()))
        return names

    other = worker.begin(worker.run(None, task=waits.name, job_id="b", isolation="process"))
    try:
        names = worker.outcome(work, isolation="process")
    finally:
        for run in list(worker.context.runs.values()):
            run.cancel()
            run.interrupt()
        other.exception(SECONDS)
    # Its log, the socket to its run, and the file of its call: no other.
    # Its log, the socket to its run, and the file of its call, some of them twice: no other.
    kinds = sorted(name.partition(":")[0] for name in set(names) if not name.startswith("/proc"))
    own = str(worker.context.directory)
    assert [kind for kind in kinds if not kind.startswith(own)] == ["/dev/null", "pipe", "socket"]
    assert len(kinds) == 4


@task
def waits() -> None:
    threading.Event().wait(60)
