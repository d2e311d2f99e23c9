"""A working directory and umask of its own for a thread, which Linux can provide.

After ``unshare(CLONE_FS)`` a thread's ``chdir`` and ``umask`` affect only that thread, and the
threads and processes that it starts. A thread cannot share them again. So at the end it changes to
the *directory* of the process, but its state stays its own.

A thread of a pool serves several callers: for each piece of work it changes to the directory of the
submitter, and back (:func:`in_this_directory`). A thread may outlive the run that started it, whose
directory it must not keep (:func:`in_process_directory`).

Some systems refuse ``unshare``, such as containers whose seccomp profile forbids it. Then nothing
here has an effect, and :func:`unsupported_reason` returns why.
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
# The directory of the main thread, which unshares it only for a run of its own.
_PROCESS_DIRECTORY = b"/proc/self/cwd"
# The original function, which records nothing.
_set_umask = os.umask


class _OwnState:
    """The state that the threads of one run share. ``umask`` is None until the run sets it."""

    __slots__ = ("process_umask", "umask")

    def __init__(self, process_umask: int) -> None:
        self.process_umask = process_umask
        self.umask: int | None = None


class _OpenDirectory:
    """A directory that is held open, so that it can be entered even after it was renamed."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


#: The own state of the running code, None for code that shares that of the process.
_current: ContextVar[_OwnState | None] = ContextVar("girder_dask_own_directory", default=None)
# By device and inode: thousands of submissions from one directory take one descriptor.
_open_directories: weakref.WeakValueDictionary[tuple[int, int], _OpenDirectory] = (
    weakref.WeakValueDictionary()
)


def _unshare() -> None:
    """Give the calling thread a directory and umask of its own, equal to the present ones.

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
    # PyDLL keeps the GIL: to get it back would take a hundred times as long as the call.
    libc = ctypes.PyDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        raise OSError("this system has no unshare()")
    return libc


@functools.cache
def unsupported_reason() -> str | None:
    """Return why threads cannot have a working directory of their own, None if they can."""
    reasons: list[str | None] = []

    def probe() -> None:
        try:
            _unshare()
            os.stat(_PROCESS_DIRECTORY)  # noqa: PTH116
        except OSError as e:
            reasons.append(str(e))

    # In a thread, since the effect ends with it.
    thread = threading.Thread(target=probe, name="girder-dask-unshare")
    Context().run(thread.start)
    thread.join()
    return reasons[0] if reasons else None


@contextlib.contextmanager
def own_working_directory() -> Iterator[bool]:
    """Give the calling thread a working directory and a umask of its own.

    Yields whether that is possible here. At the end the thread returns to the directory of the
    process and to its former umask, and so do the threads that were started within.

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
    # The other threads return to the directory of the main thread, which must be restored.
    back = os.open(".", os.O_PATH) if threading.get_native_id() == os.getpid() else None
    _unshare()
    umask = _set_umask(0)
    _set_umask(umask)
    token = _current.set(_OwnState(umask))
    try:
        yield True
    finally:
        _current.reset(token)
        _set_umask(umask)
        if back is None:
            _enter_process_directory()
        else:
            os.fchdir(back)
            os.close(back)
        _unshare()  # threads that the run left behind keep the former state to themselves


def has_own_directory() -> bool:
    """Return True if the running code belongs to a run with a directory of its own."""
    return _current.get() is not None


def _enter_process_directory() -> None:
    if _libc().chdir(_PROCESS_DIRECTORY):
        _raise()


def in_process_directory(run: Callable[[], T]) -> Callable[[], T]:
    """Return the function of a new thread that serves more than the run which starts it."""
    own = _current.get()
    if own is None:
        return run

    def run_in_process() -> T:
        _unshare()
        _enter_process_directory()
        _set_umask(own.process_umask)
        return run()

    return run_in_process


def in_this_directory(work: Callable[..., T]) -> Callable[..., T]:
    """Return a function that does ``work`` in another thread, in this thread's directory."""
    own = _current.get()
    if own is None:
        return work
    directory = _current_directory()

    def work_there(*args: object, **kwargs: object) -> T:
        _unshare()
        umask = None if own.umask is None else _set_umask(own.umask)
        try:
            if directory is not None:
                os.fchdir(directory.fd)
            return work(*args, **kwargs)
        finally:
            _enter_process_directory()
            if umask is not None:
                _set_umask(umask)

    return work_there


def _current_directory() -> _OpenDirectory | None:
    """Return the calling thread's directory, held open, or None if that is impossible."""
    try:
        status = os.stat(".")  # noqa: PTH116
        directory = _open_directories.get((status.st_dev, status.st_ino))
        if directory is None:
            directory = _OpenDirectory(os.open(".", os.O_PATH | os.O_CLOEXEC))
            _open_directories[status.st_dev, status.st_ino] = directory
    except OSError:
        return None
    return directory


def recording_umask(original: Callable[[int], int]) -> Callable[[int], int]:
    """Return a ``umask`` function that also holds for threads of pools that work for the run."""

    def umask(mask: int, /) -> int:
        before = original(mask)
        own = _current.get()
        if own is not None:
            own.umask = mask
        return before

    return umask
