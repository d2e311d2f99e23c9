"""The process of a task that has one of its own.

It is told what to run, waits until the inputs are there, calls the function and writes how
that ended. Small messages travel over a socket that keeps them apart, the call and its
outcome through a file without a name that both sides have open.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import fcntl
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from girder_dask.errors import CancelInterrupt, JobInterrupted, TimeoutInterrupt
from girder_dask.jobs import JobStatus
from girder_dask.protocol.error_text import summary
from girder_dask.protocol.json_values import opened_message, packed_message
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.redaction import Secrets, secrets_in
from girder_dask.tasks import context
from girder_dask.tasks.completion import completed
from girder_dask.tasks.context import JobManager
from girder_dask.tasks.task import find_task
from girder_dask.utils.background import Guard
from girder_dask.worker.capture import output_capture
from girder_dask.worker.concurrency import propagation
from girder_dask.worker.concurrency.forks import ending_forks
from girder_dask.worker.failures import Failure, describe_error, failure_of
from girder_dask.worker.job_context import child_jobs, open_session, running_job
from girder_dask.worker.job_log.c_stdio import flush_c_streams, line_buffer_stdout
from girder_dask.worker.job_log.log import capturing
from girder_dask.worker.job_log.process_log import ProcessLog
from girder_dask.worker.job_log.selector_thread import get_selector_thread
from girder_dask.worker.location import WorkerLocation

__all__ = [
    "MAX_MESSAGE_BYTES",
    "ProcessSpec",
    "exit_process",
    "main",
    "reading",
    "writing",
]

logger = logging.getLogger(__name__)

#: Most bytes of a message; a socket takes about 200 kB at once.
MAX_MESSAGE_BYTES = 128 * 1024

# Seconds between two messages about progress, and between two that force a sending.
_PROGRESS_INTERVAL_S = 0.05

# How long a signal waits for the message that says what it is for.
_REASON_TIMEOUT_S = 1.0

# From which number on the descriptors are that lead to the worker.
_MIN_DESCRIPTOR = 512
_NOT_HANDED = (
    "What became of the task cannot be handed to the worker ({}). A task must not close "
    "descriptors that it has not opened, as os.closerange() does.\n"
)

# The kernel ends the task's process before the worker when memory is short.
_OOM_SCORE = b"500"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What a task's process is told before its inputs are there.

    ``function`` is pickled, None for the task that ``spec`` names. ``scheduler`` is the
    address of Dask's scheduler and what a client of it needs to be let in, pickled, as few tasks
    need it and opening it imports Dask. ``environment`` is None for a process that has its own.
    """

    job: JobSpec
    location: WorkerLocation
    work_dir: Path
    function: bytes | None = field(default=None, repr=False)
    api_url: str | None = None
    gpus: tuple[str, ...] = ()
    log_level: int | str = "INFO"
    scheduler: bytes | None = field(default=None, repr=False)
    path: tuple[str, ...] = ()
    session: Mapping[str, Any] | None = field(default=None, repr=False)
    environment: Mapping[str, str] | None = field(default=None, repr=False)


def reading(file: int) -> BinaryIO:
    """Open the file from its beginning, to read what the other side has written."""
    os.lseek(file, 0, os.SEEK_SET)  # both sides share the position
    return open(file, "rb", closefd=False)


def writing(file: int) -> BinaryIO:
    """Open the file to write something new."""
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    return open(file, "wb", closefd=False)


def main(control: int, file: int) -> None:
    """Run one task.

    Parameters
    ----------
    control, file
        The descriptors of the socket and the file.
    """
    # Out of the way of tasks that close what stands after descriptor 2.
    control, file = (_moved(descriptor) for descriptor in (control, file))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
    faulthandler.enable(all_threads=False)
    line_buffer_stdout()
    with reading(file) as f:
        spec: ProcessSpec = pickle.load(f)
    if spec.environment is not None:
        _take(spec.environment)
    sys.path[:] = spec.path
    log = ProcessLog()
    output_capture.install(spec.log_level)
    output_capture.adopt_handlers()  # of modules that were imported ahead
    propagation.install()
    with (
        capturing(log),
        Secrets(spec.job.token, *secrets_in(spec.session)),
    ):
        _Child(spec, socket.socket(fileno=control), file, log).work()


def _moved(descriptor: int) -> int:
    """Give a descriptor a high number, which programs that are started do not inherit."""
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _MIN_DESCRIPTOR)
    except OSError:  # the limit of this process is lower
        os.set_inheritable(descriptor, False)
        return descriptor
    os.close(descriptor)
    return moved


def exit_process() -> NoReturn:
    """End this process as Python does, but for taking its modules apart.

    That would write to nearly all of the memory that a fork shares, which takes longer than all
    the rest of it. Python does not promise to call ``__del__`` for what is left at the exit.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - waits for threads
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no other way
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # they may be of any kind, or closed
            stream.flush()  # type: ignore[union-attr]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.PyDLL(None).exit(0)  # holds the GIL: what C has registered runs alone
    os._exit(0)


def _take(environment: Mapping[str, str]) -> None:
    """Make the environment of this fork what it would be in a process that was started anew."""
    zone = os.environ.get("TZ")
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if os.environ.get("TZ") != zone:
        time.tzset()


class _Child:
    def __init__(
        self, spec: ProcessSpec, control: socket.socket, file: int, log: ProcessLog
    ) -> None:
        self._spec = spec
        self._control = control
        self._file = file
        self._log = log
        self._sink = ProcessSink(self._send, log)
        self._manager = JobManager(self._sink, JobStatus.QUEUED)
        self._inputs = threading.Event()
        self._told = threading.Event()
        self._why: type[JobInterrupted] | None = None
        self._interruptible = True
        self._started = False

    def work(self) -> None:
        """Load, wait for the inputs, call, and write how it ended."""
        signal.signal(signal.SIGTERM, self._on_term)
        listener = threading.Thread(target=self._listen, daemon=True, name="girder-dask-control")
        Context().run(listener.start)  # it is no part of the job
        try:
            try:
                value = self._run()
            finally:
                self._interruptible = False
            failure = None
        except BaseException as e:  # noqa: BLE001 - a task may raise anything at all
            self._interruptible = False
            value, failure = None, self._failure(e)
        self._sink.tell()
        self._flush()
        try:
            self._write(value, failure)
        except OSError as e:
            with contextlib.suppress(OSError):
                os.write(2, _NOT_HANDED.format(e).encode())
            os._exit(1)
        self._send("end")

    def _run(self) -> Any:
        spec = self._spec
        job = running_job(
            spec.job,
            manager=self._manager,
            work_dir=lambda: spec.work_dir,
            hostname=spec.location.hostname,
            api_url=spec.api_url,
            gpus=spec.gpus,
        )
        open_session(job, spec.session)
        context.current.set(job)
        with child_jobs(spec.api_url, spec.job.token, self._dask_client, job):
            function = self._function()
            os.chdir(spec.work_dir)
            self._send("ready")
            self._inputs.wait()
            with reading(self._file) as f:
                args, kwargs = pickle.load(f)
            self._started = True
            if self._manager.status != JobStatus.CANCELING:
                self._manager.status = JobStatus.RUNNING
            try:
                with (
                    ending_forks(self._flush, describe_error, self._is_ours),
                    output_capture.flushing_at_end(),
                ):
                    return completed(function, *args, **kwargs)
            finally:
                self._tell_cwd()

    def _tell_cwd(self) -> None:
        """Tell where the function was in the end: relative paths in its result start there."""
        with contextlib.suppress(OSError):  # it is gone
            self._send("cwd", str(Path.cwd()))

    def _flush(self) -> None:
        self._log.flush_all()
        flush_c_streams()

    def _function(self) -> Callable[..., Any]:
        if self._spec.function is None:
            return find_task(self._spec.job.task, strictly=not self._spec.job.trusted)
        function: Callable[..., Any] = pickle.loads(self._spec.function)
        return function

    def _dask_client(self) -> Any:
        from distributed import Client

        from girder_dask.errors import SchedulerError

        if self._spec.scheduler is None:
            raise SchedulerError(
                f"Job {self._spec.job.id} does not know the address of its Dask scheduler."
            )
        address, security = pickle.loads(self._spec.scheduler)
        return Client(address, security=security, set_as_default=False)

    @property
    def _reason(self) -> str | None:
        """Why the task is to stop."""
        if self._why is not None:
            return self._why.reason
        return "canceled" if self._manager.status == JobStatus.CANCELING else None

    def _failure(self, error: BaseException) -> Failure:
        return failure_of(
            error,
            self._spec.job,
            self._spec.location,
            started=self._started,
            reason=self._reason,
        )

    def _write(self, value: Any, failure: Failure | None) -> None:
        """Write ``(kind, what)`` and, for a value, the value itself."""
        import cloudpickle

        if failure is None:
            try:
                with writing(self._file) as f:
                    pickle.dump(("value", None), f)
                    cloudpickle.dump(value, f)
            except BaseException as e:  # noqa: BLE001 - a foreign __reduce__ may raise anything
                reason = f"it cannot be pickled ({summary(e)})"
                with writing(self._file) as f:
                    pickle.dump(("unpicklable", reason), f)
        else:
            with writing(self._file) as f:
                pickle.dump(("failure", failure), f)

    # -- messages and signals ------------------------------------------------------------------

    def _send(self, kind: str, what: Any = None) -> None:
        with contextlib.suppress(OSError):  # nobody is left to hear it
            self._control.send(packed_message(kind, what))

    def _listen(self) -> None:
        guard = Guard(logger, "Hearing the worker")
        while True:
            try:
                message = self._control.recv(MAX_MESSAGE_BYTES)
            except OSError:
                return
            if not message:
                return
            with guard:
                self._hear(*opened_message(message))

    def _hear(self, kind: str, what: Any) -> None:
        if kind == "run":
            self._inputs.set()
        elif kind == "cancel":
            self._manager.status = JobStatus.CANCELING
        elif kind == "stop":
            self._why = TimeoutInterrupt if what == "timeout" else CancelInterrupt
            self._told.set()

    def _is_ours(self, handler: Any) -> bool:
        return bool(handler == self._on_term)

    def _on_term(self, *_: Any) -> None:
        """Stop the task: Python runs this in its main thread, also in ``time.sleep``."""
        if not self._told.wait(_REASON_TIMEOUT_S) or self._why is None:
            # Nobody of ours: it ends as it would without a handler.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._interruptible:
            raise self._why(job_id=self._spec.job.id)


class ProcessSink:
    """Where what the task says of itself goes: text to the log, the rest to the worker.

    The worker hears of progress a few times a second, however often the task tells of it.
    """

    def __init__(self, send: Callable[..., None], log: ProcessLog) -> None:
        self._send = send
        self._log = log
        self._progress: dict[str, Any] = {}
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._next = self._next_flush = float("-inf")
        self._is_due = False

    def write(self, text: str) -> None:
        self._log.write(text)

    def progress(self, changes: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.update(changes)
            pause = self._next - time.monotonic()
            if pause <= 0:
                self.tell()
            elif not self._is_due:
                self._is_due = True
                get_selector_thread().call_later(pause, self._tell_late)

    def _tell_late(self) -> None:
        with self._lock:
            self._is_due = False
            self.tell()

    def tell(self) -> None:
        """Send what the worker has not heard of the progress."""
        with self._lock:
            told, self._progress = self._progress, {}
            if told:
                self._next = time.monotonic() + _PROGRESS_INTERVAL_S
                self._send("progress", told)

    def status(self, status: JobStatus) -> None:
        self.tell()
        self._send("status", int(status))

    def flush(self) -> None:
        self._log.flush()
        now = time.monotonic()
        if now >= self._next_flush:
            self._next_flush = now + _PROGRESS_INTERVAL_S
            self.tell()
            self._send("flush")
