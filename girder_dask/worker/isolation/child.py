"""The process of a task, on the side of that process.

It reads its specification, waits for the inputs, calls the function and writes its outcome. Small
messages go over a socket that keeps them apart; the call and its outcome go through the
:mod:`~girder_dask.worker.isolation.exchange_file`.
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
from pathlib import Path
from typing import Any, NoReturn

from girder_dask.errors import CancelInterrupt, JobInterrupted, TimeoutInterrupt
from girder_dask.jobs import JobStatus
from girder_dask.protocol.plain_values import pack_message, unpack_message
from girder_dask.protocol.redaction import Secrets, secrets_in
from girder_dask.tasks import running_job
from girder_dask.tasks.completion import completed
from girder_dask.tasks.running_job import JobManager
from girder_dask.tasks.task import find_task
from girder_dask.utils.background import Guard
from girder_dask.worker.capture import output_capture
from girder_dask.worker.failures import Failure, describe_error, failure_of
from girder_dask.worker.girder_access import child_jobs, make_running_job, open_session
from girder_dask.worker.isolation import exchange_file
from girder_dask.worker.isolation.process_sink import ProcessSink
from girder_dask.worker.isolation.process_spec import MAX_MESSAGE_BYTES, ProcessSpec
from girder_dask.worker.job_log.c_stdio import flush_c_streams, line_buffer_stdout
from girder_dask.worker.job_log.log import capturing
from girder_dask.worker.job_log.process_log import ProcessLog
from girder_dask.worker.propagation import hooks
from girder_dask.worker.propagation.fork_exit import ending_forks

__all__ = ["exit_process", "main"]

logger = logging.getLogger(__name__)

# Seconds that the handler of a signal waits for the message with its reason.
_REASON_TIMEOUT_S = 1.0

# The lowest number of the descriptors that lead to the worker.
_MIN_DESCRIPTOR = 512
_NOT_PASSED = (
    "The outcome of the task cannot be passed to the worker ({}). A task must not close "
    "descriptors that it has not opened, as os.closerange() does.\n"
)

# Above that of the worker: when memory is short, the kernel kills the task's process first.
_OOM_SCORE = b"500"


def main(control: int, file: int) -> None:
    """Run one task.

    Parameters
    ----------
    control, file
        The descriptors of the socket and the file.
    """
    # Out of the way of tasks that close all descriptors above 2.
    control, file = (_moved(descriptor) for descriptor in (control, file))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
    faulthandler.enable(all_threads=False)
    line_buffer_stdout()
    spec: ProcessSpec = exchange_file.read(file)
    if spec.environment is not None:
        _set_environment(spec.environment)
    sys.path[:] = spec.path
    log = ProcessLog()
    running_job.set_process_of_jobs(True)
    output_capture.install(spec.log_level)
    output_capture.adopt_handlers()  # of modules that were imported in advance
    hooks.install()
    with (
        capturing(log),
        Secrets(spec.job.token, *secrets_in(spec.session)),
    ):
        _Child(spec, socket.socket(fileno=control), file, log).work()


def _moved(descriptor: int) -> int:
    """Return a duplicate of a descriptor with a high number, and close the descriptor."""
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _MIN_DESCRIPTOR)
    except OSError:  # the limit of this process is lower
        os.set_inheritable(descriptor, False)
        return descriptor
    os.close(descriptor)
    return moved


def exit_process() -> NoReturn:
    """End this process as Python does, except that its modules are not torn down.

    Tearing them down would write to nearly all memory that a fork shares, and take longer than
    everything else. Python does not promise to call ``__del__`` of objects that exist at exit.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - waits for threads
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no other way
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # they may be of any type, or closed
            stream.flush()  # type: ignore[union-attr]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.PyDLL(None).exit(0)  # holds the GIL: exit handlers of C code run alone
    os._exit(0)


def _set_environment(environment: Mapping[str, str]) -> None:
    """Replace the environment of this fork by that of a new process."""
    zone = os.environ.get("TZ")
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if os.environ.get("TZ") != zone:
        time.tzset()


class _Child:
    """The execution of one task in this process."""

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
        self._has_reason = threading.Event()
        self._interruption: type[JobInterrupted] | None = None
        self._interruptible = True
        self._started = False

    def work(self) -> None:
        """Load the function, wait for its inputs, call it, and write its outcome."""
        signal.signal(signal.SIGTERM, self._on_term)
        listener = threading.Thread(target=self._receive, daemon=True, name="girder-dask-control")
        Context().run(listener.start)  # outside of the job's context
        try:
            try:
                value = self._run()
            finally:
                self._interruptible = False
            failure = None
        except BaseException as e:  # noqa: BLE001 - a task may raise anything at all
            self._interruptible = False
            value, failure = None, self._failure(e)
        self._sink.send_progress()
        self._flush()
        try:
            if failure is None:
                exchange_file.write_value(self._file, value)
            else:
                exchange_file.write_failure(self._file, failure)
        except OSError as e:
            with contextlib.suppress(OSError):
                os.write(2, _NOT_PASSED.format(e).encode())
            os._exit(1)
        self._send("end")

    def _run(self) -> Any:
        spec = self._spec
        job = make_running_job(
            spec.job,
            manager=self._manager,
            work_dir=lambda: spec.work_dir,
            hostname=spec.location.hostname,
            api_url=spec.api_url,
            gpus=spec.gpus,
            container_scope=spec.container_scope,
        )
        open_session(job, spec.session)
        running_job.current.set(job)
        with child_jobs(spec.api_url, spec.job.token, self._dask_client, job):
            function = self._function()
            os.chdir(spec.work_dir)
            self._send("ready")
            self._inputs.wait()
            args, kwargs = exchange_file.read(self._file)
            self._started = True
            if self._manager.status != JobStatus.CANCELING:
                self._manager.status = JobStatus.RUNNING
            try:
                with (
                    ending_forks(self._flush, describe_error, self._is_own_handler),
                    output_capture.flushing_at_end(),
                ):
                    return completed(function, *args, **kwargs)
            finally:
                self._send_cwd()

    def _send_cwd(self) -> None:
        """Send the last working directory: relative paths in the result start there."""
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
        """Why the task must stop, None if it need not."""
        if self._interruption is not None:
            return self._interruption.reason
        return "canceled" if self._manager.status == JobStatus.CANCELING else None

    def _failure(self, error: BaseException) -> Failure:
        return failure_of(
            error,
            self._spec.job,
            self._spec.location,
            started=self._started,
            reason=self._reason,
        )

    # -- messages and signals ------------------------------------------------------------------

    def _send(self, kind: str, what: Any = None) -> None:
        with contextlib.suppress(OSError):  # the worker has ended
            self._control.send(pack_message(kind, what))

    def _receive(self) -> None:
        guard = Guard(logger, "Receiving messages from the worker")
        while True:
            try:
                message = self._control.recv(MAX_MESSAGE_BYTES)
            except OSError:
                return
            if not message:
                return
            with guard:
                self._on_message(*unpack_message(message))

    def _on_message(self, kind: str, what: Any) -> None:
        if kind == "run":
            self._inputs.set()
        elif kind == "cancel":
            self._manager.status = JobStatus.CANCELING
        elif kind == "stop":
            self._interruption = TimeoutInterrupt if what == "timeout" else CancelInterrupt
            self._has_reason.set()

    def _is_own_handler(self, handler: Any) -> bool:
        return bool(handler == self._on_term)

    def _on_term(self, *_: Any) -> None:
        """Interrupt the task. Python runs this in the main thread, even during ``time.sleep``."""
        if not self._has_reason.wait(_REASON_TIMEOUT_S) or self._interruption is None:
            # Not from the worker: the process ends as it would without a handler.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._interruptible:
            raise self._interruption(job_id=self._spec.job.id)
