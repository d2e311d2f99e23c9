"""What a task raised on a worker, raised again where its result is asked for."""

from __future__ import annotations

from typing import Any

from girder_dask.errors import JobFailed
from girder_dask.payload import arguments_of, open_exception, rebuilt

__all__ = ["RemoteTraceback", "failure"]


class RemoteTraceback(Exception):
    """The traceback of a task on a worker; the cause of what ``get()`` raises."""

    def __init__(self, job_id: str, text: str) -> None:
        super().__init__(job_id, text)
        self.job_id = job_id
        self.text = text

    def __str__(self) -> str:
        return f"on the worker that ran job {self.job_id}\n\n{self.text}"


def failure(
    job_id: str, reason: str | None, exception: bytes | None, *, unpickle: bool
) -> JobFailed:
    """Return what is to be raised for a job that ended in ERROR.

    Parameters
    ----------
    job_id
        The job.
    reason
        One line that says why it failed.
    exception
        What :func:`girder_dask.payload.pack_exception` made of the task's exception.
    unpickle
        Whether that may be unpickled here.

    Returns
    -------
    JobFailed
        Where it can be had, also an instance of the class that the task raised, with its
        arguments and attributes. Its cause holds the traceback of the worker.

    Examples
    --------
    >>> from girder_dask.payload import pack_exception
    >>> packed = pack_exception(ValueError('no coins'), 'Traceback …')
    >>> error = failure('5f3c', 'ValueError: no coins', packed, unpickle=False)
    >>> isinstance(error, ValueError), isinstance(error, JobFailed), str(error), error.job_id
    (True, True, 'no coins', '5f3c')
    """
    original: BaseException | None = None
    text = ""
    if exception is not None:
        original, text = open_exception(exception, unpickle=unpickle)
    failed = _as_failure(original, job_id) if original is not None else None
    if failed is None:
        failed = JobFailed(f"Job {job_id} failed: {reason or 'see its log'}", job_id=job_id)
    if text:
        failed.__cause__ = RemoteTraceback(job_id, text)
    return failed


def _as_failure(original: BaseException, job_id: str) -> JobFailed | None:
    """Return an exception that is both JobFailed and what the task raised, if that can be."""
    kind = type(original)
    if isinstance(original, JobFailed):
        return original
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__str__": kind.__str__,
        "__repr__": kind.__repr__,
        "__reduce__": lambda self: (_again, (original, job_id, self.__cause__)),
    }
    try:
        both: Any = type(kind.__name__, (JobFailed, kind), names)
        failed: JobFailed = rebuilt(both, arguments_of(original), vars(original))
    except (TypeError, ValueError):
        return None
    failed.job_id = job_id
    return failed


def _again(original: BaseException, job_id: str, cause: BaseException | None) -> BaseException:
    """Make the exception anew in a process that it was pickled for."""
    failed = _as_failure(original, job_id) or original
    failed.__cause__ = cause
    return failed
