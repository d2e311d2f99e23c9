"""The end of a process that a task has forked with ``os.fork()``.

Such a process is a copy of the worker. What follows the task in it is the worker's own: the rest of
the run, with its clean-up, threads of pools that wait for work, exit handlers. So it ends where the
code of the task ends, as a program does, and runs none of that.
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

# Which handlers of signals are not for the forks of the running code.
_not_for_forks: ContextVar[Callable[[Any], bool] | None] = ContextVar(
    "girder_dask_not_for_forks", default=None
)
# The signals that a thread had blocked before it forked.
_before = threading.local()


@contextlib.contextmanager
def ending_forks(
    flush: Callable[[], object] = lambda: None,
    tell: Callable[[BaseException], str] | None = None,
    not_for_forks: Callable[[Any], bool] | None = None,
) -> Iterator[None]:
    """End each process here that was forked within: with 0, or as an exception tells.

    Parameters
    ----------
    flush
        Called in such a process before it ends, to send what was written.
    tell
        Returns what is written of an exception. By default that is its traceback.
    not_for_forks
        Says whether a signal's handler is one of ours, and not the task's own. A signal with
        such a handler does to a fork what it does to any program.

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
    token = None if not_for_forks is None else _not_for_forks.set(not_for_forks)
    try:
        yield
    except BaseException as e:
        if os.getpid() != pid:
            _end(e, flush, tell)
        raise
    else:
        if os.getpid() != pid:
            _end(None, flush, tell)
    finally:
        if token is not None:
            _not_for_forks.reset(token)


def _before_fork() -> None:
    if _not_for_forks.get() is not None:
        # Python drops a signal that comes before the fork has its handlers.
        _before.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_fork_in_parent() -> None:
    blocked = _before.__dict__.pop("blocked", None)
    if blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _after_fork_in_child() -> None:
    """Give a fork the signals of a program."""
    not_for_forks = _not_for_forks.get()
    if not_for_forks is not None:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if handler is not signal.default_int_handler and not_for_forks(handler):
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
    tell: Callable[[BaseException], str] | None,
) -> None:
    code = 1
    try:
        code = _code(error, tell)
        _join_threads()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        flush()
    finally:
        os._exit(code)


def _code(error: BaseException | None, tell: Callable[[BaseException], str] | None) -> int:
    """Return the exit code, and write why it ends, as Python does."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        if tell is None:
            traceback.print_exception(type(error), error, error.__traceback__)
        else:
            print(tell(error), end="", file=sys.stderr)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _join_threads() -> None:
    """Wait for the threads that this process has started, as Python does at its end."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
