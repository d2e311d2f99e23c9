"""The errors that girder_dask raises, as a tree.

::

    GirderDaskError
    ├── NotConnectedError          delay() was called where no Girder is known
    ├── SubmissionError            a call cannot become a job; nothing was recorded
    │   ├── ArgumentError          an argument cannot be pickled
    │   └── PayloadTooLargeError   the arguments are larger than a job may carry
    ├── GirderError                Girder refused a request or could not be reached
    ├── SchedulerError             the Dask scheduler refused a request or could not be reached
    ├── JobError                   a job did not end in SUCCESS
    │   ├── JobFailed              the task raised
    │   ├── AlreadyBegun           a task that may run once had begun when its run was lost
    │   ├── JobCanceled            the job was canceled
    │   ├── JobTimeout             the task exceeded its timeout
    │   └── ResultUnavailable      the job succeeded, but its value is no longer kept
    ├── TaskNotFoundError          a worker cannot import the task
    ├── TransformError             an input could not be fetched, or an output not pushed
    ├── ContainerError             a container could not be started, or lacks an output
    │   └── ContainerFailed        its command ended with another exit code than 0
    └── StackError                 a part of the embedded stack did not start

    JobInterrupted                 raised inside a task to stop it; not an Exception
    ├── CancelInterrupt            its job was canceled
    └── TimeoutInterrupt           it exceeded its timeout

Each message says what happened, to which job or task, and what to do. Messages of
:class:`TaskNotFoundError`, :class:`TransformError` and :class:`ContainerError` are written for the
owner of a job: they appear in its log and hold no address or secret that the owner may not see.
"""

from __future__ import annotations

__all__ = [
    "AlreadyBegun",
    "ArgumentError",
    "CancelInterrupt",
    "ContainerError",
    "ContainerFailed",
    "GirderDaskError",
    "GirderError",
    "JobCanceled",
    "JobError",
    "JobFailed",
    "JobInterrupted",
    "JobTimeout",
    "NotConnectedError",
    "PayloadTooLargeError",
    "ResultUnavailable",
    "SchedulerError",
    "StackError",
    "SubmissionError",
    "TaskNotFoundError",
    "TimeoutInterrupt",
    "TransformError",
]


class GirderDaskError(Exception):
    """The base class of all errors of this package."""


class NotConnectedError(GirderDaskError):
    """``delay()`` was called where no Girder is known, so no job can be recorded."""


class SubmissionError(GirderDaskError):
    """A call cannot become a job. Nothing was recorded."""

    def __init__(self, message: str, *, task: str | None = None) -> None:
        super().__init__(message)
        self.task = task


class ArgumentError(SubmissionError):
    """An argument of a call cannot be pickled."""


class PayloadTooLargeError(SubmissionError):
    """The pickled arguments of a call are larger than what is stored with a job."""


class GirderError(GirderDaskError):
    """Girder refused a request or could not be reached.

    ``status`` is the HTTP status of the answer, ``None`` when there was no answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class SchedulerError(GirderDaskError):
    """The Dask scheduler refused a request or could not be reached."""


class JobError(GirderDaskError):
    """A job did not end in SUCCESS, or its value is not available."""

    def __init__(self, message: str, *, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobError):
    """A task raised. The message is the error in one line; the traceback is in the job's log."""


class AlreadyBegun(JobError):
    """A task that may run at most once had begun before; how that run ended is unknown."""


class JobCanceled(JobError):
    """A job was canceled. Raised by ``JobResult.get()``."""

    def __init__(
        self, message: str = "The job was canceled.", *, job_id: str | None = None
    ) -> None:
        super().__init__(message, job_id=job_id)


class JobTimeout(JobError):
    """A task exceeded its ``timeout``. Raised by ``JobResult.get()``."""

    def __init__(
        self, message: str = "The task exceeded its timeout.", *, job_id: str | None = None
    ) -> None:
        super().__init__(message, job_id=job_id)


class ResultUnavailable(JobError):
    """A job succeeded, but its value is no longer kept or cannot be opened here."""


class TaskNotFoundError(GirderDaskError):
    """A worker cannot import the task, or something that its arguments need."""


class TransformError(GirderDaskError):
    """An input could not be fetched from Girder, or an output not pushed to it.

    ``permanent`` is true if another try would fail in the same way, so that ``retries`` are not
    used.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class ContainerError(GirderDaskError):
    """A container could not be started, or has not written what was asked for.

    ``permanent`` is true if another try would fail in the same way, so that ``retries`` are not
    used.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class ContainerFailed(ContainerError):
    """The command of a container ended with another exit code than 0, its ``exit_code``."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StackError(GirderDaskError):
    """A part of the embedded stack did not start."""


class JobInterrupted(BaseException):
    """Raised inside a task to stop it, wherever its code is.

    It is not an ``Exception``, so a loop that retries after any error does not retry after this
    one. Catch it only to clean up, and raise it again.

    Attributes
    ----------
    reason
        ``'canceled'``, or ``'timeout'`` for a task that exceeded its timeout.
    """

    reason = "canceled"
    _message = "The job was canceled."

    def __init__(self, message: str | None = None, *, job_id: str | None = None) -> None:
        super().__init__(message or self._message)
        self.job_id = job_id


class CancelInterrupt(JobInterrupted):
    """A task is interrupted because its job was canceled."""


class TimeoutInterrupt(JobInterrupted):
    """A task is interrupted because it exceeded its ``timeout``."""

    reason = "timeout"
    _message = "The task exceeded its timeout."
