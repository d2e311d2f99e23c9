"""The running job, as its task sees it.

Inside a task, :func:`current_job` returns the running job. A task with ``bind=True`` gets the same
object as its first argument. Outside a job it is a detached one, whose methods all work and report
to the terminal, so that a task can be called as a plain function.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from girder_dask.client.result import JobResult
from girder_dask.errors import GirderDaskError, JobCanceled
from girder_dask.jobs import JobStatus
from girder_dask.tasks.container_scope import ContainerScope
from girder_dask.utils.foreign_objects import exact_text
from girder_dask.utils.text import clean_text, shortened

__all__ = [
    "JobManager",
    "Request",
    "RetryRequested",
    "RunningJob",
    "current",
    "current_job",
    "has_lost_job",
    "set_process_of_jobs",
]


# The states between which a task may move its job.
_SETTABLE = (
    JobStatus.FETCHING_INPUT,
    JobStatus.CONVERTING_INPUT,
    JobStatus.RUNNING,
    JobStatus.CONVERTING_OUTPUT,
    JobStatus.PUSHING_OUTPUT,
)


class JobSink(Protocol):
    """Destination of a running job's output, progress and status."""

    def write(self, text: str) -> None: ...

    def progress(self, changes: Mapping[str, Any]) -> None: ...

    def status(self, status: JobStatus) -> None: ...

    def image(self, name: str, digest: str) -> None: ...

    def flush(self) -> None: ...


class _TerminalSink:
    """Sink of a detached job: text goes to standard output."""

    def write(self, text: str) -> None:
        print(text, end="")

    def progress(self, changes: Mapping[str, Any]) -> None:
        pass

    def status(self, status: JobStatus) -> None:
        pass

    def image(self, name: str, digest: str) -> None:
        pass

    def flush(self) -> None:
        pass


class JobManager:
    """Log, progress and status of a running job. The names are girder_worker's.

    Examples
    --------
    >>> manager = current_job().job_manager
    >>> manager.updateProgress(total=3, current=1, message='Reading')
    >>> manager.write('half way\\n')
    half way
    """

    def __init__(self, sink: JobSink | None = None, status: JobStatus = JobStatus.RUNNING) -> None:
        self._sink = sink or _TerminalSink()
        self.status = status
        #: Those of ``total``, ``current`` and ``message`` that were set.
        self.progress: dict[str, Any] = {}
        self._noted_infinite = False

    def write(self, message: str | bytes, forceFlush: bool = False) -> None:
        """Append ``message`` to the job's log, which is sent within a second, or at once."""
        if isinstance(message, bytes):
            message = message.decode("utf-8", "replace")
        self._sink.write(message)
        if forceFlush:
            self._sink.flush()

    def updateProgress(
        self,
        total: float | None = None,
        current: float | None = None,
        message: str | None = None,
        forceFlush: bool = False,
    ) -> None:
        """Set the job's progress. None keeps the current value.

        Call it as often as you like: only the latest state is sent, a few times a second.

        Numbers that are not finite are ignored, with a line in the log the first time: progress
        alone must not end a job.

        Raises
        ------
        ValueError, TypeError
            If ``total`` or ``current`` is not a number.
        """
        changes: dict[str, Any] = {}
        for name, value in (("total", total), ("current", current)):
            if value is not None:
                number = _number(value)
                if math.isfinite(number):
                    changes[name] = number
                else:
                    self._note_infinite(name, number)
        if message is not None:
            changes["message"] = clean_text(shortened(exact_text(str(message))))
        self.progress = {**self.progress, **changes}
        self._sink.progress(changes)
        if forceFlush:
            self._sink.flush()

    def _note_infinite(self, name: str, number: float) -> None:
        if not self._noted_infinite:
            self._noted_infinite = True
            self._sink.write(
                f"girder_dask: updateProgress({name}={number}) is ignored, since the number is not "
                "finite.\n"
            )

    def record_image(self, name: str, digest: str) -> None:
        """Record on the job which image of a container it runs.

        Parameters
        ----------
        name
            Its name, as the task has given it.
        digest
            What identifies its content, such as ``busybox@sha256:…``; empty if that is not known.
        """
        self._sink.image(clean_text(shortened(name)), clean_text(shortened(digest)))

    def updateStatus(self, status: int) -> None:
        """Move the job to another state.

        A job that is being canceled stays CANCELING.

        Raises
        ------
        ValueError
            For SUCCESS and ERROR, since a task ends by returning or raising, and for INACTIVE,
            QUEUED and CANCELING, which a task cannot set.
        JobCanceled
            For CANCELED, which ends the task.
        """
        status = JobStatus(status)
        if status == JobStatus.CANCELED:
            raise JobCanceled
        if status not in _SETTABLE and not status == self.status == JobStatus.CANCELING:
            raise ValueError(
                f"A task cannot set its job to {status.name}, only to "
                f"{', '.join(settable.name for settable in _SETTABLE)}. Return from the function "
                "to end in SUCCESS, raise to end in ERROR."
            )
        if self.status != JobStatus.CANCELING:
            self.status = status
            self._sink.status(status)

    def refreshStatus(self) -> JobStatus:
        """Return the job's state as this run knows it: CANCELING once it is being canceled."""
        return self.status


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of 309 digits
        return math.inf if value > 0 else -math.inf


class RetryRequested(Exception):
    """A run ends and asks for another attempt of its job. The runner raises and handles it.

    Attributes
    ----------
    not_before
        The earliest start of the attempt, in seconds since the epoch.
    note
        What this run leaves for it.
    timeout, priority, resources
        Execution options in place of those of the job, None if they stay. A timeout of 0 is none.
    """

    def __init__(
        self,
        not_before: float,
        note: bytes | None = None,
        *,
        timeout: float | None = None,
        priority: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__("The task asks to be tried again.")
        self.not_before = not_before
        self.note = note
        self.timeout = timeout
        self.priority = priority
        self.resources = resources


@dataclass(frozen=True, slots=True)
class Request:
    """Information about one run.

    ``id`` is the job's id, ``hostname`` the host of the run, and ``gpus`` are the ids of the GPUs
    that are reserved for it.
    """

    id: str | None = None
    attempt: int = 1
    hostname: str | None = None
    girder_api_url: str | None = None
    gpus: tuple[str, ...] = ()

    @property
    def retries(self) -> int:
        """The number of earlier attempts."""
        return self.attempt - 1


class RunningJob:
    """A running job.

    Attributes
    ----------
    id
        The job's id, None for a detached job.
    title
        The job's title.
    job_manager
        A :class:`JobManager` for log, progress and status.
    girder_client
        A ``girder_client.GirderClient`` with the rights of the job's owner, limited to
        reading and writing data. None for a detached job.
    request
        A :class:`Request`.
    container_scope
        What its containers may use (:mod:`girder_dask.docker`), None for a detached job.
    """

    def __init__(
        self,
        *,
        id: str | None = None,  # noqa: A002
        title: str = "",
        job_manager: JobManager | None = None,
        girder_client: Any = None,
        work_dir: Callable[[], Path] | None = None,
        request: Request | None = None,
        container_scope: ContainerScope | None = None,
    ) -> None:
        self.id = id
        self.title = title
        self.job_manager = job_manager or JobManager()
        self.girder_client = girder_client
        self._work_dir = work_dir
        self.request = request or Request()
        self.container_scope = container_scope
        self._task: Any = None

    @property
    def work_dir(self) -> Path | None:
        """The directory of this run, removed when the run ends. None for a detached job."""
        return None if self._work_dir is None else self._work_dir()

    @property
    def canceled(self) -> bool:
        """Whether the job is being canceled."""
        return self.job_manager.status == JobStatus.CANCELING

    def bound_to(self, task: Any) -> RunningJob:
        """Return the same job for a bound task."""
        bound = copy.copy(self)
        vars(bound)["_task"] = task
        return bound

    def AsyncResult(self, task_id: str) -> JobResult:
        """Return the JobResult of a job id, under Celery's name."""
        return JobResult(task_id)

    def describe(self) -> Any:
        """Return the description of the bound task."""
        return self._bound().describe()

    def call_item_task(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the bound task here, with inputs as Girder's item tasks bind them."""
        return self._bound().call_item_task(inputs, outputs)

    def _bound(self) -> Any:
        if self._task is None:
            raise GirderDaskError(
                "This job is not bound to a task. Use the first argument of a task with bind=True."
            )
        return self._task

    def __repr__(self) -> str:
        return f"<RunningJob {self.id or 'detached'} {self.title!r}>"


#: The running job of this context.
current: ContextVar[RunningJob | None] = ContextVar("girder_dask_job", default=None)


def current_job() -> RunningJob:
    """Return the running job, or a detached one outside a job.

    Examples
    --------
    >>> current_job().canceled
    False
    """
    return current.get() or RunningJob()


# Whether this process runs jobs.
_is_process_of_jobs = False


def set_process_of_jobs(is_one: bool) -> None:
    """Set whether this process runs jobs: that of a worker, or of a task."""
    global _is_process_of_jobs
    _is_process_of_jobs = is_one


def has_lost_job() -> bool:
    """Return True in a process that runs jobs, where this context belongs to none of them.

    Examples
    --------
    >>> has_lost_job()
    False
    """
    return _is_process_of_jobs and current.get() is None
