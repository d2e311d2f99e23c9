"""The end of a process that a task has forked with ``os.fork()``.

Such a process is a copy of the worker. All code after the task belongs to the worker: the rest of
the run with its clean-up, the loops of pool threads, exit handlers. So the process ends where the
code of the task ends, as a program does, and runs none of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

__all__ = ["ending_forks"]

# Returns True if a signal handler is the worker's and must not run in forks of the running code.
_is_worker_handler: ContextVar[Callable[[Any], bool] | None] = ContextVar(
    "girder_dask_is_worker_handler", default=None
)
# The signals that a thread had blocked before it forked.
_blocked = threading.local()


@contextlib.contextmanager
def ending_forks(
    flush: Callable[[], object] = lambda: None,
    describe: Callable[[BaseException], str] | None = None,
    is_worker_handler: Callable[[Any], bool] | None = None,
) -> Iterator[None]:
    """End each process forked in the block, with the exit code 0 or that of its exception.

    Parameters
    ----------
    flush
        Called in such a process before it ends, to send its output.
    describe
        Returns the text to write about an exception. By default its traceback.
    is_worker_handler
        Returns True if a signal handler is the worker's, not the task's own. A signal with such
        a handler has its default effect in a fork.

    Examples
    --------
    >>> with ending_forks():
    ...     pid = os.fork()
    ...     if not pid:
    ...         sys.exit(7)
    >>> os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    7
    """
    pid = os.getpid()
    token = None if is_worker_handler is None else _is_worker_handler.set(is_worker_handler)
    try:
        yield
    except BaseException as e:
        if os.getpid() != pid:
            _end(e, flush, describe)
        raise
    else:
        if os.getpid() != pid:
            _end(None, flush, describe)
    finally:
        if token is not None:
            _is_worker_handler.reset(token)


def _before_fork() -> None:
    if _is_worker_handler.get() is not None:
        # Python drops a signal that arrives before the fork has its handlers.
        _blocked.signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_fork_in_parent() -> None:
    blocked = _blocked.__dict__.pop("signals", None)
    if blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _after_fork_in_child() -> None:
    """Give a fork the default signal handlers of a program."""
    is_worker_handler = _is_worker_handler.get()
    if is_worker_handler is not None:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if handler is not signal.default_int_handler and is_worker_handler(handler):
                interrupts = number == signal.SIGINT
                default = signal.default_int_handler if interrupts else signal.SIG_DFL
                signal.signal(number, default)
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _end(
    error: BaseException | None,
    flush: Callable[[], object],
    describe: Callable[[BaseException], str] | None,
) -> None:
    code = 1
    try:
        code = _exit_code(error, describe)
        _join_threads()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        flush()
    finally:
        os._exit(code)


def _exit_code(error: BaseException | None, describe: Callable[[BaseException], str] | None) -> int:
    """Write the reason for the end, and return the exit code, as Python does."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        if describe is None:
            traceback.print_exception(type(error), error, error.__traceback__)
        else:
            print(describe(error), end="", file=sys.stderr)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _join_threads() -> None:
    """Wait for the threads that this process has started, as Python does at exit."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
