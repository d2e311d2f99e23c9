"""The working directory and the umask of a job, which Linux can give to a thread alone.

After ``unshare(CLONE_FS)`` a thread's ``chdir`` and ``umask`` concern that thread, and the threads
and processes that it starts. There is no way back into what the other threads share, so a thread
of a worker's pool returns to the *directory* of the process in the end, and keeps one of its own.

A thread of a pool works for several jobs: it goes to the directory of whoever submits the work, and
back (:func:`in_this_directory`). It may have been started by a job, which must not bind it
(:func:`in_process_directory`).

Some systems refuse ``unshare``: containers whose seccomp profile does not allow it. Then nothing
here has an effect, and :func:`unsupported_reason` says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from typing import TypeVar

__all__ = [
    "has_own_directory",
    "in_process_directory",
    "in_this_directory",
    "own_working_directory",
    "recording_umask",
    "unsupported_reason",
]

T = TypeVar("T")

# From Linux's sched.h.
_CLONE_FS = 0x200
# The directory of the first thread of this process, which is never apart but in its own run.
_OF_PROCESS = b"/proc/self/cwd"
# Without a note.
_set_umask = os.umask


class _Apart:
    """What the threads of one run share. ``umask`` is what the run has set, None if nothing."""

    __slots__ = ("of_process", "umask")

    def __init__(self, of_process: int) -> None:
        self.of_process = of_process
        self.umask: int | None = None


class _Place:
    """A directory that is held open, so that it can be entered whatever it is called by then."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


#: What the running code has of its own, None for code that shares all with the process.
_current: ContextVar[_Apart | None] = ContextVar("girder_dask_apart", default=None)
# By device and inode: work that is submitted by the thousand takes one descriptor.
_places: weakref.WeakValueDictionary[tuple[int, int], _Place] = weakref.WeakValueDictionary()


def _unshare() -> None:
    """Give the calling thread a directory and a umask of its own, as they are now.

    Raises
    ------
    OSError
        If the system refuses it.
    """
    if _libc().unshare(_CLONE_FS):
        _raise()


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


@functools.cache
def _libc() -> ctypes.PyDLL:
    # Which keeps the lock of the interpreter: to get it back would cost a hundred times the call.
    libc = ctypes.PyDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        raise OSError("this system has no unshare()")
    return libc


@functools.cache
def unsupported_reason() -> str | None:
    """Say why threads cannot have a working directory of their own here, None if they can."""
    reasons: list[str | None] = []

    def probe() -> None:
        try:
            _unshare()
            os.stat(_OF_PROCESS)  # noqa: PTH116
        except OSError as e:
            reasons.append(str(e))

    # What it tries out ends with it.
    thread = threading.Thread(target=probe, name="girder-dask-unshare")
    Context().run(thread.start)
    thread.join()
    return reasons[0] if reasons else None


@contextlib.contextmanager
def own_working_directory() -> Iterator[bool]:
    """Give the calling thread a working directory and a umask of its own.

    Yields whether it could be done. In the end the thread is in the directory of the process
    again, with the umask that it had, and with it go the threads that were started within.

    Examples
    --------
    >>> before = os.getcwd()
    >>> with own_working_directory() as is_own:
    ...     if is_own:
    ...         os.chdir('/')
    >>> os.getcwd() == before
    True
    """
    if unsupported_reason() is not None:
        yield False
        return
    # The process's first thread is where the others return to.
    back = os.open(".", os.O_PATH) if threading.get_native_id() == os.getpid() else None
    _unshare()
    umask = _set_umask(0)
    _set_umask(umask)
    token = _current.set(_Apart(umask))
    try:
        yield True
    finally:
        _current.reset(token)
        _set_umask(umask)
        if back is None:
            _return()
        else:
            os.fchdir(back)
            os.close(back)
        _unshare()  # what the run has left goes its own way from here


def has_own_directory() -> bool:
    """Say whether the running code belongs to a run with a directory of its own."""
    return _current.get() is not None


def _return() -> None:
    if _libc().chdir(_OF_PROCESS):
        _raise()


def in_process_directory(run: Callable[[], T]) -> Callable[[], T]:
    """Return what runs in a new thread that serves more than the job that starts it."""
    own = _current.get()
    if own is None:
        return run

    def run_in_process() -> T:
        _unshare()
        _return()
        _set_umask(own.of_process)
        return run()

    return run_in_process


def in_this_directory(work: Callable[..., T]) -> Callable[..., T]:
    """Return what does ``work`` in another thread, in the directory in which this one is now."""
    own = _current.get()
    if own is None:
        return work
    place = _here()

    def work_there(*args: object, **kwargs: object) -> T:
        _unshare()
        umask = None if own.umask is None else _set_umask(own.umask)
        try:
            if place is not None:
                os.fchdir(place.fd)
            return work(*args, **kwargs)
        finally:
            _return()
            if umask is not None:
                _set_umask(umask)

    return work_there


def _here() -> _Place | None:
    """Return the calling thread's directory, None if it cannot be held open."""
    try:
        status = os.stat(".")  # noqa: PTH116
        place = _places.get((status.st_dev, status.st_ino))
        if place is None:
            place = _Place(os.open(".", os.O_PATH | os.O_CLOEXEC))
            _places[status.st_dev, status.st_ino] = place
    except OSError:
        return None
    return place


def recording_umask(original: Callable[[int], int]) -> Callable[[int], int]:
    """Return what sets the umask, for the threads of pools too that work for the run."""

    def umask(mask: int, /) -> int:
        before = original(mask)
        own = _current.get()
        if own is not None:
            own.umask = mask
        return before

    return umask
