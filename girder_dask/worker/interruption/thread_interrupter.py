"""How one thread is interrupted: an exception at its next Python instruction, and a wake.

What the thread waits for is ended as far as that can be done: a condition is notified, a
socket that is read is shut, the tasks of an event loop are canceled. A thread in the middle of
writing to a log or of an import is let out of it first, as an exception there would leave locks
behind that belong to all jobs of the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

try:
    import ssl
except ImportError:  # this Python was built without it
    ssl = None  # type: ignore[assignment]

from girder_dask.errors import CancelInterrupt, JobInterrupted, TimeoutInterrupt
from girder_dask.utils.background import Guard
from girder_dask.worker.interruption import interruptible_waits

__all__ = [
    "ThreadInterrupter",
    "pending_interrupts",
    "raise_pending_interrupt",
    "repeated",
    "user_position",
    "withdraw_interrupt",
]

logger = logging.getLogger(__name__)

_PACKAGE = str(Path(__file__).parents[2])
_WORKER = f"{_PACKAGE}/worker"

#: Where an exception would leave something behind that is not the job's alone: files, and those
#: of ours in which the code of a job may run.
_GUARDED = (
    f"{_WORKER}/capture/",
    f"{_WORKER}/job_log/",
    f"{_WORKER}/outbox.py",
    f"{_WORKER}/run_sink.py",
    logging.__file__,
)
_STREAMS = tuple(f"{_WORKER}/capture/{name}.py" for name in ("routing_streams", "standard_streams"))
_IMPORT = "<frozen importlib._bootstrap>"
_STANDARD = str(Path(threading.__file__).parent)
#: The frames of a task's code are those within one of these.
_CALLERS = tuple(
    f"{_WORKER}/{name}.py" for name in ("run/runner", "isolation/child", "interruption/job_threads")
)

#: An exception in one of these leaves a lock behind.
_LOCKING = frozenset({"acquire", "release", "__enter__", "__exit__", "_acquire_restore"})

#: What is to be raised in threads that write to a log all the time, by their identities.
pending_interrupts: dict[int, type[JobInterrupted]] = {}

#: So many frames are looked at.
_MAX_DEPTH = 40
#: For how long a thread is let out of such a place, or a loop has to cancel its tasks, in seconds.
_MAX_WAIT_S = 1.0
_POLL_INTERVAL_S = 0.005


class ThreadInterrupter:
    """Interrupts threads.

    Parameters
    ----------
    wanted
        Says of a thread whether it is still to be interrupted. Called with ``lock`` held.
    lock
        What is held when a thread is interrupted.
    """

    def __init__(self, wanted: Callable[[int], bool], lock: threading.RLock) -> None:
        self._wanted = wanted
        self._lock = lock

    def interrupt(self, idents: list[int], exception: type[JobInterrupted], *, first: bool) -> None:
        """Raise an exception in threads, with the lock held.

        Parameters
        ----------
        first
            Whether they were not interrupted before. Then an event loop only cancels its tasks,
            whose ``finally`` may await something.
        """
        left: dict[int, _Loop | None] = {}
        for ident in idents:
            stop = _Loop.of(_frame(ident)) if first else None
            if stop is not None:
                stop.cancel()
            if stop is not None or not _strike(ident, exception):
                left[ident] = stop
        pending_interrupts.update(
            {ident: exception for ident, stop in left.items() if stop is None}
        )
        if left:
            watch = threading.Thread(target=self._strike_later, args=(left, exception), daemon=True)
            Context().run(watch.start)  # it is no part of the job

    def _strike_later(self, left: dict[int, _Loop | None], exception: type[JobInterrupted]) -> None:
        deadline = time.monotonic() + _MAX_WAIT_S
        guard = Guard(
            logger,
            "Interrupting a thread of a job",
            first_delay_s=_POLL_INTERVAL_S,
            max_delay_s=_MAX_WAIT_S,
        )
        while left:
            time.sleep(guard.delay_s or _POLL_INTERVAL_S)
            is_late = time.monotonic() >= deadline
            with guard:
                self._strike_those(left, exception, is_late=is_late)
            if guard.failed and is_late:
                return  # who stops the job interrupts it again

    def _strike_those(
        self, left: dict[int, _Loop | None], exception: type[JobInterrupted], *, is_late: bool
    ) -> None:
        with self._lock:
            for ident, stop in list(left.items()):
                is_done = not self._wanted(ident) or (stop is not None and stop.has_run)
                was_met = stop is None and ident not in pending_interrupts
                may = is_late or stop is None
                if was_met or is_done or (may and _strike(ident, exception, is_late=is_late)):
                    if not was_met:
                        pending_interrupts.pop(ident, None)
                    del left[ident]


class _Loop:
    """An event loop that runs in a thread, whose tasks are to be canceled."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self.has_run = False

    @classmethod
    def of(cls, frame: FrameType | None) -> _Loop | None:
        """Return the innermost loop that runs where a thread is, if there is one."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is None:
            return None
        while frame is not None:
            name = frame.f_code.co_name
            if name in ("run_forever", "run_until_complete"):
                found = frame.f_locals.get("self")
            elif name == "run" and frame.f_code.co_filename.endswith("asyncio/runners.py"):
                found = getattr(frame.f_locals.get("self"), "_loop", None)  # uvloop has no frames
            else:
                found = None
            if isinstance(found, asyncio.AbstractEventLoop):
                return cls(found)
            frame = frame.f_back
        return None

    def cancel(self) -> None:
        """Have it cancel all of its tasks when it comes to that."""
        self._call(self._cancel)

    def wake(self) -> None:
        """Have it do nothing, but soon."""
        self._call(lambda: None)

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed
            Context().run(self._loop.call_soon_threadsafe, function)

    def _cancel(self) -> None:
        import asyncio

        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.has_run = True


def raise_pending_interrupt(text: Any) -> None:
    """Raise what is due in the calling thread, which has written text, if it is at a line's end.

    It may write so much that it is hardly ever seen where it could be interrupted.
    """
    ident = threading.get_ident()
    if ident in pending_interrupts and text[-1:] in ("\n", b"\n"):
        caller: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the only way to it
        while caller is not None and caller.f_code.co_filename.startswith(_STREAMS):
            caller = caller.f_back
        if not _is_guarded(caller):
            exception = pending_interrupts.pop(ident, None)
            if exception is not None:
                raise exception


def _strike(ident: int, exception: type[JobInterrupted], *, is_late: bool = False) -> bool:
    """Raise an exception in a thread and wake it, unless it is where that would do harm."""
    frame = _frame(ident)
    if frame is None:
        return True
    is_unfit = _is_locking if is_late else _is_guarded
    if is_unfit(frame):
        return False
    _raise_in(ident, exception)
    frame = _frame(ident)
    if is_unfit(frame):  # it has gone on meanwhile
        _raise_in(ident, None)
        return False
    if frame is not None:
        _wake(frame)
    loop = _Loop.of(frame)
    if loop is not None:
        loop.wake()
    return True


def _raise_in(ident: int, exception: type[BaseException] | None) -> None:
    """Have a thread raise an exception at its next Python instruction; None takes it back."""
    target = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), target)


def _frame(ident: int) -> FrameType | None:
    return sys._current_frames().get(ident)  # noqa: SLF001 - the only way to it


def _frames(frame: FrameType | None, most: int = _MAX_DEPTH) -> Iterator[FrameType]:
    while frame is not None and most > 0:
        yield frame
        frame, most = frame.f_back, most - 1


def _is_guarded(frame: FrameType | None) -> bool:
    """Say whether a thread is where an exception would do harm to others."""
    if frame is None or frame.f_code is threading.Condition.wait.__code__:
        return False  # what waits holds nothing
    if frame.f_code.co_filename == _IMPORT or _is_locking(frame):
        return True
    for each in _frames(frame):
        file = each.f_code.co_filename
        if file.startswith(_GUARDED):
            return True
    return False


def _is_locking(frame: FrameType | None) -> bool:
    """Say whether a thread is about to take or to release a lock, and may have it already."""
    if frame is None or frame.f_code.co_name not in _LOCKING:
        return False
    file = frame.f_code.co_filename
    return file.startswith(_PACKAGE) or _is_standard(file)


def _is_standard(file: str) -> bool:
    return file.startswith((_STANDARD, "<frozen")) and "-packages" not in file


def user_position(ident: int) -> str:
    """Return where the user's code in a thread is, in words, or an empty text."""
    for frame in _frames(_frame(ident), 1000):
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE) and not _is_standard(file):
            return f"{file}, line {frame.f_lineno}, in {frame.f_code.co_name}"
    return ""


# -- what a thread waits for ---------------------------------------------------------------


def _wake(frame: FrameType) -> None:
    """Wake a thread that waits, as whoever would have done that may have been interrupted."""
    if interruptible_waits.wake(frame):
        return
    if frame.f_code is threading.Condition.wait.__code__:
        _notify(frame)
        return
    for each in _frames(frame, 4):
        found = _socket_of(each)
        if found is not None:
            with contextlib.suppress(OSError):  # it is not connected
                # Not the method of an SSLSocket, which forgets its state.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
            return


def _notify(frame: FrameType) -> None:
    """Do for one who waits for an event, a queue or a future what ``Condition.notify`` does."""
    condition: Any = frame.f_locals["self"]
    waiter: Any = frame.f_locals.get("waiter")
    if not condition.acquire(False):
        return  # somebody notifies it just now, or has just begun to wait
    try:
        if waiter in condition._waiters:  # noqa: SLF001 - notify() cannot name one
            condition._waiters.remove(waiter)  # noqa: SLF001
            waiter.release()
    finally:
        condition.release()


def _reading() -> dict[CodeType, str]:
    """Return the functions that wait for a socket, and the name by which they know it."""
    found = {
        socket.SocketIO.readinto.__code__: "self._sock",
        socket.create_connection.__code__: "sock",
    }
    if ssl is not None:
        for name in ("read", "recv", "recv_into", "do_handshake"):
            found[getattr(ssl.SSLSocket, name).__code__] = "self"
    return found


_WAITS_FOR_SOCKET = _reading()


def _socket_of(frame: FrameType) -> socket.socket | None:
    name = _WAITS_FOR_SOCKET.get(frame.f_code)
    if name is None and frame.f_code.co_name == "create_connection":
        name = "sock"  # urllib3 has its own
    if name is None:
        return None
    first, _, attribute = name.partition(".")
    found = frame.f_locals.get(first)
    found = getattr(found, attribute, None) if attribute else found
    return found if isinstance(found, socket.socket) else None


# -- one that catches whatever is raised ---------------------------------------------------


class _Deafened(JobInterrupted):
    """Is raised again at each next line of what has caught it, until Python stops that.

    It may so cut short what a task does to clean up.
    """

    def __init__(self, message: str | None = None, *, job_id: str | None = None) -> None:
        super().__init__(message, job_id=job_id)
        kind = type(self).__mro__[2]  # the plain one

        def again(frame: FrameType, event: str, _argument: Any) -> Any:
            if frame.f_code.co_filename.startswith((_PACKAGE, *_GUARDED)):
                return None
            if event == "line":
                raise kind(message, job_id=job_id)
            return again

        again.__qualname__ = _AGAIN
        interrupted = sys._getframe(1)  # noqa: SLF001 - the only way to it
        for each in _frames(interrupted, 1000):
            if each.f_code.co_filename.startswith(_CALLERS):
                break
            if not each.f_code.co_filename.startswith(_PACKAGE):
                each.f_trace = again
        sys.settrace(again)


_AGAIN = "girder_dask again"


class _CancelAgain(_Deafened, CancelInterrupt):
    pass


class _TimeoutAgain(_Deafened, TimeoutInterrupt):
    pass


_DEAFENED: dict[type[JobInterrupted], type[JobInterrupted]] = {
    CancelInterrupt: _CancelAgain,
    TimeoutInterrupt: _TimeoutAgain,
}


def repeated(exception: type[JobInterrupted]) -> type[JobInterrupted]:
    """Return what is raised in a task that goes on although interrupted many times."""
    return _DEAFENED.get(exception, exception)


def withdraw_interrupt() -> None:
    """Raise nothing any more in the calling thread."""
    ident = threading.get_ident()
    pending_interrupts.pop(ident, None)
    if getattr(sys.gettrace(), "__qualname__", None) == _AGAIN:
        sys.settrace(None)
    # To raise None instead would leave a mark in CPython 3.11, which makes the whole process hang
    # as soon as a tracer or a profiler is set in it.
    try:
        _raise_in(ident, _Nothing)
        for _ in range(_MAX_INSTRUCTIONS):
            pass
    except _Nothing:
        pass


class _Nothing(BaseException):
    """Takes the place of an interruption that is taken back."""


#: Instructions after which an exception has been raised.
_MAX_INSTRUCTIONS = 100
