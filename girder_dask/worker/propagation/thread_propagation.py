"""Propagation of a job into threads and thread pools, with waits that an interruption ends."""

from __future__ import annotations

import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from girder_dask.errors import JobInterrupted
from girder_dask.utils import working_directory
from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.interruption import interruptible_waits, job_threads
from girder_dask.worker.job_log.log import JobLog, current
from girder_dask.worker.propagation.fork_exit import ending_forks
from girder_dask.worker.tracebacks import own_traceback

__all__ = ["install", "uninstall"]

#: Threads of Dask outlive the job that first needed them. So may the threads of a pool, which are
#: the job's while they work for it, and a thread that runs an event loop.
_DASK = "distributed"
_POOLS = "concurrent.futures.thread"
_LOOP = "run_forever"

_patches = MonkeyPatches()
_is_active = False


def install() -> None:
    """Start to propagate jobs into threads."""
    global _is_active
    _is_active = True
    _patches.apply(threading.Thread, "__init__", _thread_init)
    _patches.apply(threading.Thread, "start", _thread_start)
    _patches.apply(concurrent.futures.ThreadPoolExecutor, "submit", _submit)
    join = functools.partial(interruptible_waits.join_in_job, _in_job)
    _patches.apply(threading.Thread, "join", join)
    _patches.apply(time, "sleep", functools.partial(interruptible_waits.sleep_in_job, _in_job))


def uninstall() -> None:
    """Undo :func:`install`."""
    global _is_active
    _is_active = False
    _patches.undo()


def _thread_init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: threading.Thread, *args: Any, daemon: bool | None = None, **kwargs: Any) -> None:
        original(self, *args, daemon=daemon, **kwargs)
        if daemon is None and _is_active and current.get() is not None and self.daemon:
            # As in a program, whose main thread is no daemon. The threads of a worker may be.
            self.daemon = False
            job_threads.inherit_daemon(self)

    return init


def _thread_start(original: Callable[[threading.Thread], None]) -> Callable[..., None]:
    def start(self: threading.Thread) -> None:
        job_threads.make_daemon(self)
        log = current.get() if _is_active else None
        if log is None or _exclude_if_dasks(self):
            original(self)
            return
        serves_others = _serves_others(self)
        context, end = copy_context(), interruptible_waits.end_latch(self)
        run = working_directory.in_process_directory(self.run) if serves_others else self.run
        owner = None if serves_others else job_threads.threads_of(log)

        def run_in_job() -> None:
            # Set the variables rather than run in the context: an exception that ends the thread
            # must reach the job's log too, and is shown after run().
            for variable, value in context.items():
                variable.set(value)
            self.__dict__.pop("run", None)  # restores the thread, and leaves no cycle
            try:
                _run_reported(
                    self, run if owner is None else functools.partial(owner.run_thread, run)
                )
            finally:
                end.open()

        self.run = run_in_job  # type: ignore[method-assign]
        if owner is not None:
            owner.add_starting(self)
        try:
            original(self)
        except JobInterrupted:  # this thread was interrupted; the new one may run
            raise
        except BaseException:
            self.__dict__.pop("run", None)
            if owner is not None:
                owner.discard_starting(self)
            raise

    return start


def _run_reported(thread: threading.Thread, run: Callable[[], None]) -> None:
    """Run a thread, and report its error as ``threading`` does, without frames of this package."""
    try:
        run()
    except BaseException as e:  # noqa: BLE001 - a task may raise anything at all
        e.__traceback__ = own_traceback(e)
        threading.excepthook(threading.ExceptHookArgs((type(e), e, e.__traceback__, thread)))


def _in_job() -> bool:
    """Return True if the calling thread may be interrupted with its job."""
    log = current.get() if _is_active else None
    return log is not None and job_threads.threads_of(log) is not None


def _exclude_if_dasks(thread: threading.Thread) -> bool:
    """Return True if a thread is Dask's, and have it run in the directory of the process."""
    if not _is_of(thread, _DASK):
        return False
    if working_directory.has_own_directory():
        thread.run = working_directory.in_process_directory(thread.run)  # type: ignore[method-assign]
    return True


def _is_of(code: Any, package: str) -> bool:
    """Return True if a function, or what a thread runs, is defined in a package or module."""
    module = getattr(getattr(code, "_target", code), "__module__", None) or ""
    return f"{module}.".startswith(f"{package}.")


def _serves_others(thread: threading.Thread) -> bool:
    """Return True if a thread may work for other jobs too."""
    target = getattr(thread, "_target", None)
    return _is_of(thread, _POOLS) or getattr(target, "__name__", None) == _LOOP


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        log = current.get() if _is_active else None
        owner = None if log is None or _is_of(fn, _DASK) else job_threads.threads_of(log)
        run = copy_context().run
        if log is not None:
            # Without this, the pool's loop would go on in the fork and wait for work.
            fn = _ending_forks(fn, log)
            run = working_directory.in_this_directory(run)
        return original(self, run if owner is None else owner.for_pool(run), fn, *args, **kwargs)

    return submit


def _ending_forks(work: Callable[..., Any], log: JobLog) -> Callable[..., Any]:
    def work_in_this_process(*args: Any, **kwargs: Any) -> Any:
        with ending_forks(log.flush):
            return work(*args, **kwargs)

    return work_in_this_process
