"""Everything that girder_dask raises.

::

    GirderDaskError
    ├── NotConnectedError          delay() was called where no Girder is known
    ├── SubmissionError            a call cannot become a job; nothing was recorded
    │   ├── ArgumentError          an argument cannot be pickled
    │   └── PayloadTooLargeError   the arguments are larger than a job may carry
    ├── GirderError                Girder refused, or could not be reached
    ├── SchedulerError             the Dask scheduler refused, or could not be reached
    ├── JobError                   a job did not end in SUCCESS
    │   ├── JobFailed              the task raised
    │   ├── AlreadyBegun           it may run at most once, and was begun before it was lost
    │   ├── JobCanceled            the job was canceled
    │   ├── JobTimeout             the task ran longer than it may
    │   └── ResultUnavailable      the job succeeded, but its value is no longer kept
    ├── TaskNotFoundError          a worker cannot import the task
    ├── TransformError             an input could not be fetched, or an output not pushed
    └── StackError                 a part of the embedded stack did not start

    JobInterrupted                 what stops a task from within; no Exception
    ├── CancelInterrupt            its job was canceled
    └── TimeoutInterrupt           it ran longer than it may

Each message says what happened, to which job or task, and what to do. Those of
:class:`TaskNotFoundError` and :class:`TransformError` are written for the owner of a
job: they end up in its log and hold no address or secret that the owner may not see.
"""

from __future__ import annotations

__all__ = [
    "AlreadyBegun",
    "ArgumentError",
    "CancelInterrupt",
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
    """The root of all errors of this package."""


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
    """Girder refused a request, or could not be reached.

    ``status`` is the HTTP status of the answer, ``None`` when there was no answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class SchedulerError(GirderDaskError):
    """The Dask scheduler refused a request, or could not be reached."""


class JobError(GirderDaskError):
    """A job did not end in SUCCESS, or its value is not to be had."""

    def __init__(self, message: str, *, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobFailed(JobError):
    """A task raised. The message has the error in one line, the job's log the traceback."""


class AlreadyBegun(JobError):
    """A task that may run at most once was begun before, and it is not known how that ended."""


class JobCanceled(JobError):
    """A job was canceled. Raised by ``JobResult.get()``."""

    def __init__(
        self, message: str = "The job was canceled.", *, job_id: str | None = None
    ) -> None:
        super().__init__(message, job_id=job_id)


class JobTimeout(JobError):
    """A task ran longer than its ``timeout``. Raised by ``JobResult.get()``."""

    def __init__(
        self, message: str = "The task ran longer than it may.", *, job_id: str | None = None
    ) -> None:
        super().__init__(message, job_id=job_id)


class ResultUnavailable(JobError):
    """A job succeeded, but its value is not kept any more, or cannot be opened here."""


class TaskNotFoundError(GirderDaskError):
    """A worker cannot import the task, or something that its arguments need."""


class TransformError(GirderDaskError):
    """An input could not be fetched from Girder, or an output not pushed to it.

    ``permanent``: it would fail the same way if it were tried again, so ``retries`` do not count.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class StackError(GirderDaskError):
    """A part of the embedded stack did not start."""


class JobInterrupted(BaseException):
    """Raised inside a task that is to stop, wherever its code is.

    It is no ``Exception``, so that a loop that tries again after any error does not try again
    after this. Catch it only to clean up, and raise it again.

    Attributes
    ----------
    reason
        ``'canceled'``, or ``'timeout'`` for a task that ran longer than it may.
    """

    reason = "canceled"
    _message = "The job was canceled."

    def __init__(self, message: str | None = None, *, job_id: str | None = None) -> None:
        super().__init__(message or self._message)
        self.job_id = job_id


class CancelInterrupt(JobInterrupted):
    """A task is interrupted because its job was canceled."""


class TimeoutInterrupt(JobInterrupted):
    """A task is interrupted because it ran longer than its ``timeout``."""

    reason = "timeout"
    _message = "The task ran longer than it may."
