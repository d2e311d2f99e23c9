"""How the end of a run that went wrong is told to the owner of the job."""

from __future__ import annotations

import signal
import sys
import traceback
from dataclasses import dataclass, field
from subprocess import CalledProcessError
from typing import Any

from girder_dask.errors import (
    AlreadyBegun,
    JobCanceled,
    JobFailed,
    JobInterrupted,
    JobTimeout,
    TaskNotFoundError,
    TransformError,
)
from girder_dask.http_objects import chain, strip_headers
from girder_dask.jobs import JobSpec, JobStatus, shortened
from girder_dask.redaction import clean_data, clean_text, clean_urls
from girder_dask.remote_errors import open_exception, pack_exception
from girder_dask.tracebacks import format_error, own_traceback

__all__ = [
    "Failure",
    "Place",
    "exception_of",
    "failure_of",
    "name_of",
    "summary",
    "tell",
    "tell_missing",
    "was_killed",
]

# What is kept of an exception with a job, in bytes.
_MOST_KEPT = 256 * 1024

#: The signals by which all processes of a worker may be asked, or made, to end.
ENDING = frozenset(
    {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)}  # none on Windows
)
_OF_KEYBOARD = "The task raised KeyboardInterrupt, which ends it as an error.\n"
# What multiprocessing says in a worker that has a nanny.
_NO_CHILDREN = "daemonic processes are not allowed to have children"
_OF_CHILDREN = (
    "The processes of workers start no others by multiprocessing. Give the task a process of its "
    "own, which does: @task(isolation='process'), or my_task.options(isolation='process').\n"
)
# A shell adds it to the signal that has ended what it ran.
_SHELL = 128


class Place:
    """Where a run runs, in words.

    >>> str(Place('tcp://10.0.0.7:4312', 'node7'))
    'worker tcp://10.0.0.7:4312 on node7'
    """

    def __init__(self, address: str, hostname: str) -> None:
        self.address = address
        self.hostname = hostname

    def __str__(self) -> str:
        return f"worker {self.address} on {self.hostname}"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run ended that did not succeed.

    Attributes
    ----------
    status
        ERROR or CANCELED.
    text
        What the log says of it.
    error
        The same in one line, None for a canceled job.
    exception
        What was raised, packed by :func:`girder_dask.remote_errors.pack_exception`.
    cause
        What was raised, where it is at hand.
    killed
        Whether a signal has ended the task's process, or one that it waited for.
    permanent
        Whether the job would end so again, so that it is not tried again.
    """

    status: JobStatus
    text: str
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)
    cause: BaseException | None = None
    killed: bool = False
    permanent: bool = False


def failure_of(
    error: BaseException, spec: JobSpec, place: Place, *, started: bool, reason: str | None
) -> Failure:
    """Return what is told of an error that ended a run.

    Parameters
    ----------
    started
        Whether the function was called, so that what is missing is its own matter.
    reason
        Why the run was stopped, ``'timeout'`` or ``'canceled'``; None if it was not.
    """
    strip_headers(error)
    is_stop = reason is not None and _is_stop(error)
    if isinstance(error, JobCanceled) or (is_stop and reason == "canceled"):
        return Failure(JobStatus.CANCELED, "The job was canceled.\n", cause=error)
    if is_stop:
        line = f"The task ran longer than the {spec.timeout:g} s that it may."
        timeout = JobTimeout(line, job_id=spec.id).with_traceback(error.__traceback__)
        return Failure(JobStatus.ERROR, f"{line}\n", line, _packed(timeout, line), timeout)
    if isinstance(error, ImportError) and not started:
        text = tell_missing(spec, error, place)
    elif isinstance(error, TaskNotFoundError):
        text = f"The task cannot run on {place}. {error}\n"
    else:
        text = tell(error, started=started)
    text = clean_text(clean_urls(text))
    packed = _packed(error, text)
    killed, permanent = was_killed(error), isinstance(error, TransformError) and error.permanent
    if permanent and spec.retries:
        text += "The job is not tried again, as this would not change.\n"
    return Failure(
        JobStatus.ERROR, text, summary(error), packed, error, killed=killed, permanent=permanent
    )


def _is_stop(error: BaseException) -> bool:
    """Say whether an error is what a run is stopped with, or what became of that.

    >>> _is_stop(BaseExceptionGroup('', [JobInterrupted()])), _is_stop(ValueError())
    (True, False)
    """
    if isinstance(error, BaseExceptionGroup):  # noqa: F821 - Python has it from 3.11 on
        return all(map(_is_stop, error.exceptions))
    asyncio = sys.modules.get("asyncio")
    return isinstance(error, (JobInterrupted, JobTimeout)) or (
        asyncio is not None and isinstance(error, asyncio.CancelledError)
    )


def was_killed(error: BaseException) -> bool:
    """Say whether an error comes of a signal that asked, or made, a process to end.

    That is one which the task waited for, or its own, where SIGINT raises KeyboardInterrupt.

    >>> was_killed(CalledProcessError(-signal.SIGTERM, 'count')), was_killed(ValueError())
    (True, False)
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if isinstance(each, KeyboardInterrupt):
            return True
        if isinstance(each, CalledProcessError) and _number(each.returncode) in ENDING:
            return True
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return False


def _number(code: int) -> int:
    """Return the signal that an exit code stands for, as ``Popen`` or a shell says it."""
    return -code if code < 0 else code - _SHELL


def _packed(error: BaseException, text: str) -> bytes | None:
    """Return what is kept of an error with the job, or None where nothing can be."""
    try:
        data = pack_exception(error, text)
        if len(data) > _MOST_KEPT:
            data = pack_exception(JobFailed(summary(error)[:1000]), text[-_MOST_KEPT // 8 :])
    except Exception:  # noqa: BLE001 - a foreign exception class may do anything
        return None
    return data


def summary(error: BaseException) -> str:
    """Return one line that says what went wrong.

    >>> summary(ValueError('no coins'))
    'ValueError: no coins'
    """
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    try:
        text = clean_text(clean_urls(shortened(" ".join(str(error).split()))))
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        text = ""
    return f"{name}: {text}" if text else name


def name_of(value: Any) -> str:
    """Return the ``repr`` of a value, or the name of its type where that fails."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__ may raise anything
        return type(value).__name__


def tell(error: BaseException, *, started: bool = True) -> str:
    """Return what the log says of an error that ended a run.

    ``started`` is whether the function was called.
    """
    if isinstance(error, (TransformError, AlreadyBegun)):
        return f"{error}\n"
    if isinstance(error, SystemExit):
        return _tell_exit(error, started=started)
    if isinstance(error, KeyboardInterrupt) and own_traceback(error) is not None:
        return format_error(error) + _OF_KEYBOARD
    if isinstance(error, AssertionError) and _NO_CHILDREN in str(error):
        return format_error(error) + _OF_CHILDREN
    return format_error(error)


def _tell_exit(error: SystemExit, *, started: bool) -> str:
    argument = "" if error.code is None else repr(error.code)
    where = traceback.extract_tb(own_traceback(error))
    at = f" in {where[-1].filename}, line {where[-1].lineno}" if where else ""
    if not started:
        return (
            f"sys.exit({argument}) was called{at} before the task began, for example by a module "
            "that it imports. That ends a process, and a task is none. Take the call out of what "
            "runs when the module is imported.\n"
        )
    return (
        f"The task called sys.exit({argument}){at}. That ends a process, and a task is none, so "
        "there is no result: return from the function to end in SUCCESS, raise to end in ERROR.\n"
    )


def tell_missing(spec: JobSpec, error: ImportError, place: Place) -> str:
    """Return what the log says when a worker cannot import what a job needs."""
    missing = (error.name or "").partition(".")[0]
    own = spec.task.partition(".")[0].partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and missing == own:
        name, _, version = (spec.package or missing).partition(" ")
        what = f"The package {name} is not installed there."
        if error.name != missing:
            what = f"The {name} that is installed there is another one: it has no {error.name}."
        install = f"{name}=={version}" if version else name
    elif isinstance(error, ModuleNotFoundError) and missing:
        what = f"{error} there, which the task or its arguments need."
        install = missing
    else:
        return format_error(error) + (
            f"The task {spec.task} cannot run on {place}: what it imports is installed there, but "
            "raises this error when it is imported. Correct it, or install a version of the "
            f"package that works there ({spec.package or own}), and start the job again.\n"
        )
    trace = "" if missing == own else format_error(error)
    return (
        f"{trace}The task {spec.task} cannot run on {place}. {what} Install it in the "
        f"environment of the workers and start the job again:\n    pip install '{install}'\n"
    )


def exception_of(failure: Failure, job_id: str) -> Exception:
    """Return what Dask is given in place of a value. It holds no secrets of runs."""
    cause = failure.cause
    if cause is not None and _holds_secrets(cause):
        cause = None
    if cause is None and failure.exception is not None:
        cause, _ = open_exception(failure.exception, unpickle=True)
    if isinstance(cause, Exception):
        return cause
    if failure.status == JobStatus.CANCELED:
        return JobCanceled(job_id=job_id)
    return JobFailed(f"Job {job_id} failed: {failure.error}", job_id=job_id)


def _holds_secrets(error: BaseException) -> bool:
    """Say whether there are secrets in an error, or in those that led to it."""
    import cloudpickle

    for each in chain(error):
        try:
            data = cloudpickle.dumps((each.args, vars(each)))
            text = f"{each!r} {each}"
        except Exception:  # noqa: BLE001 - what cannot be pickled does not travel
            data, text = b"", name_of(each)
        if clean_data(data) != data or clean_urls(clean_text(text)) != text:
            return True
    return False
