"""The process of a task, on the side of its worker.

Between the two is a :mod:`~girder_dask.worker.isolation.subreaper`, which ends all processes of the
task. The output of the process goes to the job's pipe, like that of any subprocess.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from girder_dask.errors import ArgumentError, JobCanceled, JobTimeout
from girder_dask.jobs import JobStatus
from girder_dask.protocol.error_text import summary
from girder_dask.protocol.plain_values import pack_message, unpack_message
from girder_dask.tasks.running_job import JobManager
from girder_dask.worker.failures import Failure
from girder_dask.worker.isolation import exchange_file
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.isolation.launcher import SubreaperProcess, launch
from girder_dask.worker.isolation.process_death import failure_of_death
from girder_dask.worker.isolation.process_spec import MAX_MESSAGE_BYTES, ProcessSpec
from girder_dask.worker.job_log.log import JobLog

__all__ = ["THREAD_REMEDY", "ProcessFailed", "TaskProcess"]

logger = logging.getLogger(__name__)

#: What to do with a task that needs the worker's process.
THREAD_REMEDY = (
    "run it with isolation='thread' on a worker that allows it (girder.worker.isolation: thread)"
)

# Seconds that the process may take to end by itself once the function has returned.
_EXIT_TIMEOUT_S = 5.0
# Seconds that a killed process may take to end.
_KILL_TIMEOUT_S = 30.0


class ProcessFailed(Exception):
    """Error of a function in its process. ``failure`` is what to report."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


class TaskProcess:
    """The process of one run.

    Parameters
    ----------
    spec
        What the process runs.
    supervisor
        The supervisor of the worker's fork server.
    log
        The job's log.
    manager
        The job manager that gets its progress and status.
    directory
        Where the :mod:`~girder_dask.worker.isolation.exchange_file` is created.
    grace_s
        Seconds between asking the task to stop and killing it.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        supervisor: ForkServerSupervisor,
        *,
        log: JobLog,
        manager: JobManager,
        directory: Path,
        grace_s: float,
    ) -> None:
        self._spec = spec
        self._manager = manager
        self._grace_s = grace_s
        #: The working directory in which the function returned, None until then.
        self.cwd: str | None = None
        self._received: set[str] = set()
        self._lock = threading.RLock()
        self._is_waited_for = False
        self._stopping: str | None = None
        self._kill_at: float | None = None
        self._task_pid: int | None = None
        self._status: int | None = None
        self._is_gone = False
        self._closing = contextlib.ExitStack()
        self._subreaper: SubreaperProcess | None = None
        with self._closing:
            launched = launch(
                spec, supervisor, self._closing, log=log, writer=self, directory=directory
            )
            self._subreaper, self._file = launched.subreaper, launched.file
            self._control, self._lifeline = launched.control, launched.lifeline
            self._nudge, nudged = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._closing.callback(self._nudge.close)
            self._closing.callback(nudged.close)
            self._selector = self._closing.enter_context(selectors.DefaultSelector())
            self._selector.register(self._control, selectors.EVENT_READ, self._on_message)
            self._selector.register(self._lifeline, selectors.EVENT_READ, self._on_lifeline)
            self._selector.register(nudged, selectors.EVENT_READ, lambda: nudged.recv(1))
            self._closing = self._closing.pop_all()

    @property
    def returncode(self) -> int | None:
        """The exit code, None while a process of the task may still write to the log."""
        return self._subreaper.returncode if self._subreaper is not None else None

    @property
    def pids(self) -> set[int]:
        """The process id of the subreaper, which ends everything that the task starts."""
        return set() if self._subreaper is None else {self._subreaper.pid}

    @property
    def timed_out(self) -> bool:
        """Whether the task reached its time limit."""
        return self._stopping == "timeout"

    # -- running -------------------------------------------------------------------------------

    def load(self) -> None:
        """Wait until the process has found the function.

        Raises
        ------
        ProcessFailed
            If it could not find it, or has ended.
        """
        with self._waiting():
            self._wait_for("ready")
        if "ready" not in self._received:
            self._wait_for_end()
            self._outcome()

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any], timeout_s: float | None) -> Any:
        """Call the function, and return its value.

        Raises
        ------
        ProcessFailed
            If it raised, or its process ended before it returned.
        JobTimeout
            If it took longer than ``timeout_s`` seconds.
        JobCanceled
            If it was killed because the job was canceled.
        """
        with self._waiting():
            try:
                exchange_file.write(self._file.fileno(), (tuple(args), dict(kwargs)))
            except Exception as e:
                raise ArgumentError(
                    f"An argument of {self._spec.job.task} cannot be passed to a process of its "
                    f"own, as it cannot be pickled: {summary(e)}. Pass a path, or {THREAD_REMEDY}.",
                    task=self._spec.job.task,
                ) from e
            self._send("run")
            self._wait_for("end", timeout_s)
            self._wait_for_end()
        return self._outcome()

    def _wait_for(self, message: str, timeout_s: float | None = None) -> None:
        """Wait for a message or the end of the process. Stop it at the time limit."""
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._received & {message, "end"} and not self._is_gone:
            if limit is not None and time.monotonic() >= limit:
                self._stop("timeout")
            self._wait(limit if self._stopping is None else None)

    def _wait_for_end(self) -> None:
        """Wait until the process and all that it started have ended. Kill them after a timeout."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + _EXIT_TIMEOUT_S
        give_up = None
        while not self._is_gone:
            if give_up is None and time.monotonic() >= self._kill_at:
                give_up = time.monotonic() + _KILL_TIMEOUT_S
                if self._has_ended and self._stopping is None:
                    self._manager.write(
                        "The function has returned, but its process went on for "
                        f"{_EXIT_TIMEOUT_S:g} s (a thread, or an exit handler). It was killed.\n"
                    )
            if give_up is not None and time.monotonic() > give_up:
                logger.error("The process of job %s does not end", self._spec.job.id)
                return
            self._wait(give_up)

    def _wait(self, until: float | None) -> None:
        """Receive messages until a time, and kill the task when its deadline has passed."""
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._command(b"kill")
            self._kill_at = now + max(self._grace_s, 1.0)
        times = [t for t in (until, self._kill_at) if t is not None]
        pause_s = max(0.0, min(times) - now) if times else None
        for key, _ in self._selector.select(pause_s):
            key.data()

    def _outcome(self) -> Any:
        """Return the value, or raise the error that ended the task."""
        job_id = self._spec.job.id
        if self._stopping == "timeout" and not self._has_failed_otherwise():
            raise JobTimeout(job_id=job_id)
        if self._stopping == "cancel" and not self._has_ended:
            raise JobCanceled(job_id=job_id)
        if not self._has_ended:
            raise ProcessFailed(failure_of_death(self._status, self._spec.location.hostname))
        failure = exchange_file.read_failure(self._file.fileno())
        if failure is not None:
            raise ProcessFailed(failure)
        return exchange_file.read_value(self._file.fileno())

    def _has_failed_otherwise(self) -> bool:
        """Return True if the task reacted to its time limit with an error of its own."""
        failure = exchange_file.read_failure(self._file.fileno()) if self._has_ended else None
        return failure is not None and failure.status == JobStatus.ERROR

    @property
    def _has_ended(self) -> bool:
        return "end" in self._received

    # -- messages ------------------------------------------------------------------------------

    def _on_message(self) -> bool:
        """Handle one message. Return False if there is none."""
        try:
            message = self._control.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            message = b""
        if not message:  # the task and its forks have closed it
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._control)
            return False
        kind, what = unpack_message(message)
        if kind == "progress":
            with contextlib.suppress(TypeError, ValueError, AttributeError, OverflowError):
                fields = ("total", "current", "message")
                self._manager.updateProgress(**{name: what.get(name) for name in fields})
        elif kind == "status":
            with contextlib.suppress(JobCanceled, ValueError):
                self._manager.updateStatus(what)
        elif kind == "image":
            with contextlib.suppress(TypeError, ValueError):
                self._manager.record_image(*map(str, what))
        elif kind == "cwd":
            self.cwd = str(what)
        elif kind == "flush":
            self._manager.write("", forceFlush=True)
        else:
            self._received.add(kind)
        return True

    def _on_lifeline(self) -> None:
        try:
            words = self._lifeline.recv(200).decode().split()
        except OSError:
            words = []
        if words[:1] == ["task"]:
            self._task_pid = int(words[1])
            return
        while self._on_message():
            pass  # messages that it sent before it ended
        if words[:1] == ["status"]:
            self._status, left = int(words[1]), int(words[2])
            if left and self._stopping is None:
                count = "a process" if left == 1 else f"{left} processes"
                end = "It was" if left == 1 else "They were"
                self._manager.write(f"The task left {count} behind. {end} ended.\n")
        self._end_subreaper(lost=not words)

    def _end_subreaper(self, *, lost: bool) -> None:
        """Wait for the end of the subreaper after its last message. ``lost``: it was killed."""
        if self._subreaper is None:
            return
        if lost and self._task_pid is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._task_pid, signal.SIGKILL)
        self._subreaper.wait()
        self._is_gone = True

    def _send(self, kind: str, what: Any = None) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the lifeline reports
            self._control.send(pack_message(kind, what), socket.MSG_DONTWAIT)

    def _command(self, command: bytes) -> None:
        with contextlib.suppress(OSError):
            self._lifeline.send(command, socket.MSG_DONTWAIT)

    # -- stopping, from other threads ----------------------------------------------------------

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Let :meth:`interrupt` stop the process while the thread of the run waits for it."""
        with self._lock:
            self._is_waited_for = True
        try:
            yield
        finally:
            with self._lock:
                self._is_waited_for = False

    def cancel(self) -> None:
        """Ask the task to stop."""
        self._send("cancel")

    def interrupt(self) -> bool:
        """Stop the task by a signal; kill it after the grace. Return True if a run waits for it."""
        with self._lock:
            if self._is_waited_for:
                self._stop("cancel")
            return self._is_waited_for

    def _stop(self, reason: str) -> None:
        with self._lock:
            if self._stopping is None:
                self._stopping = reason
                self._kill_at = time.monotonic() + self._grace_s
                self._send("stop", reason)
                self._command(b"term")
        with contextlib.suppress(OSError):
            self._nudge.send(b"!", socket.MSG_DONTWAIT)

    def close(self) -> None:
        """End all remaining processes. May be called at any time, and twice."""
        with self._closing:
            if not self._is_gone and self._subreaper is not None:
                with self._waiting():
                    self._kill_at = time.monotonic()
                    self._wait_for_end()
