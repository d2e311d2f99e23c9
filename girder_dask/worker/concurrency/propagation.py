"""What a job starts belongs to the job: threads, thread pools, subprocesses and forks.

While installed, and only for code that runs in a job:

* ``threading.Thread.start``: the thread runs with the context of the one that starts it, and
  is one of the job's threads (see :mod:`girder_dask.worker.interruption.job_threads`).
* ``ThreadPoolExecutor.submit``: the work runs in a copy of the context of the submitter,
  also outside of jobs, as the pool's threads may have been started by another job. The
  pool's thread is one of the job's meanwhile.
* ``time.sleep`` and ``Thread.join`` wait for what an interruption can wake (see
  :mod:`girder_dask.worker.interruption.interruptible_waits`).
* ``subprocess.Popen``: a stream that the child would inherit from the worker becomes the
  job's pipe; so does one that is named as ``sys.stdout``, ``sys.stderr`` or their
  descriptors. Others are left alone. ``os.popen`` and asyncio use it too. The child's
  environment has the name of the run, so that what comes of it is known (see :func:`name_run`).
* ``os.system``: runs the shell through ``subprocess``.
* ``os.fork``, and ``multiprocessing`` with the start method ``fork``: the child's streams and
  its descriptors 1 and 2 become the job's pipe.

Known limits
------------
``multiprocessing`` with ``spawn`` or ``forkserver``, ``os.posix_spawn`` and threads started
with ``_thread`` write to the worker's own log. The threads of a ``multiprocessing.pool.ThreadPool``
belong to the job that made the pool; so does a thread that a library keeps for later jobs to the
one that needed it first. What runs in a pool's ``initializer``, or in an event loop that has a
thread of its own, is not interrupted with its job. What C code has put into the environment of
the process without Python is not in that of a subprocess. Nothing but threads is carried on
Windows.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any

from girder_dask.errors import JobInterrupted
from girder_dask.utils import working_directory
from girder_dask.worker.capture import standard_streams
from girder_dask.worker.capture.routing_streams import RoutingBuffer, RoutingStream
from girder_dask.worker.concurrency.forks import ending_forks
from girder_dask.worker.interruption import interruptible_waits, job_threads
from girder_dask.worker.job_log import log as job_log
from girder_dask.worker.job_log.log import JobLog, current
from girder_dask.worker.tracebacks import own_traceback

__all__ = [
    "RUN_VARIABLE",
    "install",
    "pipe_identity",
    "running_subprocesses",
    "set_run_name",
    "uninstall",
    "with_run_name",
]

#: The variable that holds the name of the run to which a process belongs.
RUN_VARIABLE = "GIRDER_DASK_RUN"

_POSIX = os.name == "posix"

#: Where Popen's stdout and stderr stand among its positional arguments.
_POSITIONS = {"stdout": 4, "stderr": 5}
_ENV_POSITION = 10

#: Threads of Dask outlive the job that happened to need them first. So may those of a pool, which
#: are the job's while they work for it, and one that runs an event loop.
_DASK = "distributed"
_POOLS = "concurrent.futures.thread"
_LOOP = "run_forever"

_patches: list[tuple[Any, str, Any, Any]] = []
_install_lock = threading.Lock()
_hooked = False
_active = False
_run_names: weakref.WeakKeyDictionary[JobLog, str] = weakref.WeakKeyDictionary()
#: What descriptors 1 and 2 were when the worker forked.
_standard: dict[int, tuple[int, int]] = {}


def install() -> None:
    """Start to carry jobs into what they start. Does nothing the second time."""
    global _active, _hooked
    with _install_lock:
        if _active:
            return
        _patch(threading.Thread, "__init__", _thread_init)
        _patch(threading.Thread, "start", _thread_start)
        _patch(concurrent.futures.ThreadPoolExecutor, "submit", _submit)
        _patch(
            threading.Thread, "join", functools.partial(interruptible_waits.join_in_job, _in_job)
        )
        _patch(time, "sleep", functools.partial(interruptible_waits.sleep_in_job, _in_job))
        if _POSIX:
            _patch(subprocess.Popen, "__init__", _popen_init)
            _patch(os, "system", _system)
            if not _hooked:
                # There is no way to take these back; they look at _active.
                os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
                _hooked = True
        _active = True


def uninstall() -> None:
    """Put back what :func:`install` replaced, unless somebody has replaced it since."""
    global _active
    with _install_lock:
        _active = False
        while _patches:
            owner, name, original, replacement = _patches.pop()
            if getattr(owner, name) is replacement:
                setattr(owner, name, original)


def set_run_name(log: JobLog, name: str) -> None:
    """Have each subprocess that a job starts from now on carry a name in its environment."""
    _run_names[log] = name


def with_run_name(log: JobLog, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a process that a job's run starts, with the name of the run."""
    name = _run_names.get(log)
    return dict(environment) if name is None else _with_name(name, environment)


def running_subprocesses(log: JobLog) -> list[Any]:
    """Return the ``Popen`` of each subprocess that a job has started and not yet waited for."""
    # Some are in the making, and some stand for a process that has a subreaper.
    return [process for process in log.children() if getattr(process, "pid", None)]


def pipe_identity(log: JobLog) -> tuple[int, int] | None:
    """Return what tells the pipe that a job's subprocesses write to: its device and inode."""
    return log.pipe_identity()


def _patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    replacement = functools.wraps(original)(make(original))
    setattr(owner, name, replacement)
    _patches.append((owner, name, original, replacement))


# -- threads -------------------------------------------------------------------------------


def _thread_init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: threading.Thread, *args: Any, daemon: bool | None = None, **kwargs: Any) -> None:
        original(self, *args, daemon=daemon, **kwargs)
        if daemon is None and _active and current.get() is not None and self.daemon:
            # As in a program, whose first thread is none; the threads of workers may be.
            self.daemon = False
            job_threads.inherit_daemon(self)

    return init


def _thread_start(original: Callable[[threading.Thread], None]) -> Callable[..., None]:
    def start(self: threading.Thread) -> None:
        job_threads.make_daemon(self)
        log = current.get() if _active else None
        if log is None or _is_dasks(self):
            original(self)
            return
        serves_others = _serves_others(self)
        context, end = copy_context(), interruptible_waits.end_latch(self)
        run = working_directory.in_process_directory(self.run) if serves_others else self.run
        owner = None if serves_others else job_threads.threads_of(log)

        def run_in_job() -> None:
            # Set rather than run in the context, so that an exception that ends the thread
            # is shown in the job's log too: that happens after run().
            for variable, value in context.items():
                variable.set(value)
            self.__dict__.pop("run", None)  # the thread is as it was, and no cycle is left
            try:
                _run_shown(self, run if owner is None else functools.partial(owner.run_thread, run))
            finally:
                end.open()

        self.run = run_in_job  # type: ignore[method-assign]
        if owner is not None:
            owner.expect(self)
        try:
            original(self)
        except JobInterrupted:  # this thread was interrupted; the other may run
            raise
        except BaseException:
            self.__dict__.pop("run", None)
            if owner is not None:
                owner.expect_no_more(self)
            raise

    return start


def _run_shown(thread: threading.Thread, run: Callable[[], None]) -> None:
    """Do the work of a thread, and show what ends it as ``threading`` does, without our frames."""
    try:
        run()
    except BaseException as e:  # noqa: BLE001 - a task may raise anything at all
        e.__traceback__ = own_traceback(e)
        threading.excepthook(threading.ExceptHookArgs((type(e), e, e.__traceback__, thread)))


def _in_job() -> bool:
    """Say whether the calling thread is one that may be interrupted with its job."""
    log = current.get() if _active else None
    return log is not None and job_threads.threads_of(log) is not None


def _is_dasks(thread: threading.Thread) -> bool:
    """Say whether a thread is Dask's, and let it not be in the directory of the job if it is."""
    if not _is_of(thread, _DASK):
        return False
    if working_directory.has_own_directory():
        thread.run = working_directory.in_process_directory(thread.run)  # type: ignore[method-assign]
    return True


def _is_of(code: Any, package: str) -> bool:
    """Say whether a function, or what a thread runs, is defined in a package or module."""
    module = getattr(getattr(code, "_target", code), "__module__", None) or ""
    return f"{module}.".startswith(f"{package}.")


def _serves_others(thread: threading.Thread) -> bool:
    """Say whether a thread may do something for other jobs too."""
    target = getattr(thread, "_target", None)
    return _is_of(thread, _POOLS) or getattr(target, "__name__", None) == _LOOP


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        log = current.get() if _active else None
        owner = None if log is None or _is_of(fn, _DASK) else job_threads.threads_of(log)
        run = copy_context().run
        if log is not None:
            # A thread of the pool would go on there, and wait for work.
            fn = _ending_forks(fn, log)
            run = working_directory.in_this_directory(run)
        return original(self, run if owner is None else owner.for_pool(run), fn, *args, **kwargs)

    return submit


def _ending_forks(work: Callable[..., Any], log: JobLog) -> Callable[..., Any]:
    def work_in_this_process(*args: Any, **kwargs: Any) -> Any:
        with ending_forks(log.flush):
            return work(*args, **kwargs)

    return work_in_this_process


# -- subprocesses --------------------------------------------------------------------------


def _popen_init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        log = current.get() if _active else None
        if log is None:
            original(self, *args, **kwargs)
            return
        name = _run_names.get(log)
        if name is not None:
            args = _add_name(name, args, kwargs)
        with log.lend_pipe(self) as fd:
            if fd is not None:
                args = _redirect(fd, args, kwargs)
            original(self, *args, **kwargs)

    return init


def _add_name(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Put the name of a run into a copy of the environment that a child is to have."""
    if len(args) > _ENV_POSITION:
        env = _with_name(name, args[_ENV_POSITION])
        return (*args[:_ENV_POSITION], env, *args[_ENV_POSITION + 1 :])
    kwargs["env"] = _with_name(name, kwargs.get("env"))
    return args


def _with_name(name: str, env: Mapping[Any, Any] | None) -> dict[Any, Any]:
    if env is None:
        # Another thread may take a variable away meanwhile.
        env = {key: value for key in os.environ if (value := os.environ.get(key)) is not None}
    return {**env, RUN_VARIABLE: name}


def _redirect(fd: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Put ``fd`` where a child would write to the worker's streams."""
    positional = list(args)
    for name, position in _POSITIONS.items():
        if position < len(positional):
            if _is_workers(positional[position]):
                positional[position] = fd
        elif _is_workers(kwargs.get(name)):
            kwargs[name] = fd
    return tuple(positional)


def _is_workers(stream: Any) -> bool:
    if stream is None or isinstance(stream, (RoutingStream, RoutingBuffer)):
        return True
    if standard_streams.is_captured(stream):
        return True
    return isinstance(stream, int) and stream in (1, 2)


def _system(original: Callable[[Any], int]) -> Callable[[Any], int]:
    def system(command: Any) -> int:
        if not _active or current.get() is None:
            return original(command)
        code = subprocess.call(command, shell=True, close_fds=False)  # noqa: S602 - it is os.system
        return code << 8 if code >= 0 else -code

    return system


# -- forks ---------------------------------------------------------------------------------


def _before_fork() -> None:
    log = current.get() if _active else None
    if log is None:
        return
    # The child would write what the worker's own streams still hold once more.
    standard_streams.flush_originals()
    with contextlib.suppress(ValueError):  # closed: the child writes to the worker's stderr
        log.pipe(for_fork=True)
    _standard.clear()
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            _standard[fd] = _identity(fd)


def _after_fork_in_child() -> None:
    if not _active:
        return
    job_log.after_fork_in_child()
    job_threads.after_fork_in_child()
    log = current.get()
    if log is not None:
        _redirect_descriptors(log)


def _redirect_descriptors(log: JobLog) -> None:
    """Make descriptors 1 and 2 of this child the job's pipe, for what is not Python."""
    try:
        pipe = log.pipe()
    except ValueError:
        return
    for fd, identity in _standard.items():
        with contextlib.suppress(OSError):
            # A pseudo-terminal (os.forkpty) has put its own there before.
            if _identity(fd) == identity:
                os.dup2(pipe, fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
