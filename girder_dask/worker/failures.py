"""Failures of runs: text for the log, an error for Girder, an exception for Dask."""

from __future__ import annotations

import signal
import sys
import traceback
from dataclasses import dataclass, field, replace
from subprocess import CalledProcessError

from girder_dask.errors import (
    AlreadyBegun,
    ContainerError,
    JobCanceled,
    JobFailed,
    JobInterrupted,
    JobTimeout,
    TaskNotFoundError,
    TransformError,
)
from girder_dask.http.exception_requests import linked_exceptions, strip_headers
from girder_dask.jobs import JobStatus
from girder_dask.protocol.error_text import name_of, summary
from girder_dask.protocol.exceptions import CarriedError, pack_exception
from girder_dask.protocol.messages import JobSpec, RetryRequest
from girder_dask.protocol.redaction import clean_text, clean_urls
from girder_dask.tasks.running_job import RetryRequested
from girder_dask.utils.foreign_objects import call_or_default, exact_text
from girder_dask.worker.location import WorkerLocation
from girder_dask.worker.tracebacks import format_error, own_traceback

__all__ = [
    "Failure",
    "describe_error",
    "describe_missing_import",
    "exception_of",
    "failure_of",
    "was_killed",
]

# Size of the largest exception that is stored with a job.
_MAX_EXCEPTION_BYTES = 256 * 1024
# Length of the longest traceback in a log.
_MAX_TRACEBACK_CHARACTERS = 1 << 20

#: The signals with which all processes of a worker may be terminated or killed.
TERMINATING_SIGNALS = frozenset(
    {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)}  # none on Windows
)
_KEYBOARD_HINT = "The task raised KeyboardInterrupt, which ends it as an error.\n"
_OWN_PROCESS = "@task(isolation='process'), or my_task.options(isolation='process')"
_PROCESSES_HINT = (
    "multiprocessing starts no processes from the process of a worker. Give the task a process of "
    f"its own: {_OWN_PROCESS}.\n"
)
_SIGNAL_HANDLER_HINT = (
    "A task runs in a thread of a worker, and only the main thread can set signal handlers. Give "
    f"the task a process of its own: {_OWN_PROCESS}.\n"
)
_EVENT_LOOP_HINT = (
    "A task runs in a thread of a worker, which has no event loop. Use asyncio.run(), or define "
    "the task with 'async def'.\n"
)
_NO_INPUT = "A job has no standard input. "
_INPUT_HINT = f"{_NO_INPUT}Pass what the task asks for as an argument.\n"
_NO_ENGINE_HINT = (
    "The worker reaches no Docker engine, which this task needs. Start one there and let the "
    "account of the worker use it, set DOCKER_HOST for the worker, or send the task to a queue "
    "whose workers have an engine. 'girder-dask doctor' names them.\n"
)
_NO_DOCKER_SDK_HINT = (
    "The package docker is not installed in the environment of the worker, and girder_worker needs "
    "it for containers: pip install docker.\n"
)
_NO_IMAGE_HINT = (
    "The Docker engine of the worker does not have the image, and cannot pull it. Check its name. "
    "An image that is private, or for a worker without internet, is loaded there beforehand, with "
    "docker pull or docker load, and the task gets pull_image=False.\n"
)
_DEBUGGER_HINT = f"{_NO_INPUT}Remove breakpoint() and pdb.set_trace() from the task.\n"
# Errors that come from where a task runs: the type, a part of the text, and a hint for the log.
_HINTS = (
    (
        "builtins.AssertionError",
        "daemonic processes are not allowed to have",
        _PROCESSES_HINT,
    ),
    ("builtins.ValueError", "signal only works in main thread", _SIGNAL_HANDLER_HINT),
    ("builtins.RuntimeError", "There is no current event loop in thread", _EVENT_LOOP_HINT),
    ("builtins.EOFError", "EOF when reading a line", _INPUT_HINT),
    ("bdb.BdbQuit", "", _DEBUGGER_HINT),
    ("docker.errors.DockerException", "Error while fetching server API version", _NO_ENGINE_HINT),
    ("builtins.NameError", "name 'docker' is not defined", _NO_DOCKER_SDK_HINT),
    ("docker.errors.ImageNotFound", "", _NO_IMAGE_HINT),
    ("docker.errors.APIError", 'Get "https://', _NO_IMAGE_HINT),
    ("docker.errors.NotFound", "pull access denied", _NO_IMAGE_HINT),
    ("docker.errors.NotFound", "manifest", _NO_IMAGE_HINT),
)
# The exit code of a shell is this plus the signal that has ended its command.
_SHELL_SIGNAL_OFFSET = 128


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure or cancellation of a run.

    Attributes
    ----------
    status
        ERROR or CANCELED.
    text
        The text for the log.
    error
        The error in one line, None for a canceled job.
    exception
        The exception, packed by :func:`girder_dask.protocol.exceptions.pack_exception`.
    killed
        Whether a signal has ended the task's process, or one that it waited for.
    retry
        The attempt that the run asks for instead of its end.
    permanent
        Whether every retry would fail in the same way.
    """

    status: JobStatus
    text: str
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)
    killed: bool = False
    permanent: bool = False
    retry: RetryRequest | None = None


def failure_of(
    error: BaseException,
    spec: JobSpec,
    location: WorkerLocation,
    *,
    started: bool,
    reason: str | None,
) -> Failure:
    """Return the failure to report for an error that ended a run.

    Parameters
    ----------
    started
        Whether the function was called. If so, an ``ImportError`` is reported like any error.
    reason
        Why the run was stopped, ``'timeout'`` or ``'canceled'``; None if it was not.
    """
    try:
        return _failure_of(error, spec, location, started=started, reason=reason)
    except JobInterrupted:
        raise
    except BaseException as e:  # noqa: BLE001 - an object that a task raises may run any code
        name = type.__dict__["__qualname__"].__get__(type(error))
        line = f"{name}, which cannot be described: describing it raised {type(e).__name__}"
        return Failure(JobStatus.ERROR, f"{line}.\n", line, _packed(JobFailed(line), line))


def _failure_of(
    error: BaseException,
    spec: JobSpec,
    location: WorkerLocation,
    *,
    started: bool,
    reason: str | None,
) -> Failure:
    if isinstance(error, RetryRequested) and reason is None:
        request = RetryRequest(
            error.not_before, error.note, error.timeout, error.priority, error.resources
        )
        return Failure(JobStatus.QUEUED, "", str(error), retry=request)
    strip_headers(error)
    is_stop = reason is not None and _is_stop(error)
    if isinstance(error, JobCanceled) or (is_stop and reason == "canceled"):
        return Failure(JobStatus.CANCELED, "The job was canceled.\n")
    if is_stop:
        return _timeout_failure(spec)
    line = summary(error)
    log_text = call_or_default(
        lambda: exact_text(_log_text(error, spec, location, started=started)), f"{line}\n"
    )
    text = clean_text(clean_urls(_cut(log_text)))
    if reason == "timeout":  # raised in answer to the interruption
        return replace(_timeout_failure(spec), text=f"{text}{_limit_line(spec)}\n")
    packed = _packed(error, text)
    killed = was_killed(error)
    permanent = isinstance(error, (TransformError, ContainerError)) and error.permanent
    if permanent and spec.retries:
        text += "The job is not retried, as it would fail in the same way.\n"
    return Failure(JobStatus.ERROR, text, line, packed, killed=killed, permanent=permanent)


def _log_text(
    error: BaseException, spec: JobSpec, location: WorkerLocation, *, started: bool
) -> str:
    if isinstance(error, ImportError) and not started:
        return describe_missing_import(spec, error, location)
    if isinstance(error, TaskNotFoundError):
        return f"The task cannot run on {location}. {error}\n"
    return describe_error(error, started=started)


def _cut(text: str) -> str:
    """Return a text without its middle if it is too long to read."""
    left = len(text) - _MAX_TRACEBACK_CHARACTERS
    if left <= 0:
        return text
    half = _MAX_TRACEBACK_CHARACTERS // 2
    return f"{text[:half]}\n[{left:,} characters are left out]\n{text[-half:]}"


def _timeout_failure(spec: JobSpec) -> Failure:
    """Return the failure of a run that has reached its time limit."""
    line = _limit_line(spec)
    packed = _packed(JobTimeout(line, job_id=spec.id), line)
    return Failure(JobStatus.ERROR, f"{line}\n", line, packed)


def _limit_line(spec: JobSpec) -> str:
    return f"The task exceeded its time limit of {spec.timeout:g} s."


def _is_stop(error: BaseException) -> bool:
    """Return True if an error is an interruption, or comes from one.

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
    """Return True if an error comes from a signal that terminated or killed a process.

    It may be a process that the task waited for, or its own, where SIGINT raises
    KeyboardInterrupt.

    >>> was_killed(CalledProcessError(-signal.SIGTERM, 'count')), was_killed(ValueError())
    (True, False)
    """
    for each in linked_exceptions(error):
        if isinstance(each, KeyboardInterrupt):
            return True
        if (
            isinstance(each, CalledProcessError)
            and _signal_number(each.returncode) in TERMINATING_SIGNALS
        ):
            return True
    return False


def _signal_number(code: object) -> int:
    """Return the signal that an exit code of ``Popen`` or a shell stands for."""
    if type(code) is not int:  # the code that raises the error sets it
        return 0
    return -code if code < 0 else code - _SHELL_SIGNAL_OFFSET


def _packed(error: BaseException, text: str) -> bytes | None:
    """Pack an error to be stored with the job. Return None if it cannot be packed."""
    try:
        data = pack_exception(error, text)
        if len(data) > _MAX_EXCEPTION_BYTES:
            data = pack_exception(
                JobFailed(summary(error)[:1000]), text[-_MAX_EXCEPTION_BYTES // 8 :]
            )
    except Exception:  # noqa: BLE001 - an exception class may do anything
        return None
    return data


def describe_error(error: BaseException, *, started: bool = True) -> str:
    """Return the text for the log about an error that ended a run.

    ``started`` is whether the function was called.
    """
    if isinstance(error, (TransformError, AlreadyBegun)) or _is_of_container(error):
        return f"{error}\n"
    if isinstance(error, SystemExit):
        return _describe_exit(error, started=started)
    if isinstance(error, KeyboardInterrupt) and own_traceback(error) is not None:
        return format_error(error) + _KEYBOARD_HINT
    return format_error(error) + _hint(error)


def _is_of_container(error: BaseException) -> bool:
    """Return True for an error of a container that the job itself was, in no code of a user."""
    return isinstance(error, ContainerError) and own_traceback(error) is None


def _hint(error: BaseException) -> str:
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    for name, text, hint in _HINTS:
        if kind == name and text in summary(error):
            return hint
    return ""


def _describe_exit(error: SystemExit, *, started: bool) -> str:
    argument = "" if error.code is None else name_of(error.code)
    where = traceback.extract_tb(own_traceback(error))
    at = f" in {where[-1].filename}, line {where[-1].lineno}" if where else ""
    if not started:
        return (
            f"sys.exit({argument}) was called{at} before the task began, for example by a module "
            "that it imports. That ends a process, not a job. Remove the call from the code that "
            "runs when the module is imported.\n"
        )
    return (
        f"The task called sys.exit({argument}){at}. That ends a process, not a job, so there is no "
        "result: return from the function to end in SUCCESS, raise to end in ERROR.\n"
    )


def describe_missing_import(spec: JobSpec, error: ImportError, location: WorkerLocation) -> str:
    """Return the text for the log about a module that a worker cannot import."""
    missing = (error.name or "").partition(".")[0]
    own = spec.task.partition(".")[0].partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and missing == own:
        name, _, version = (spec.package or missing).partition(" ")
        what = f"The package {name} is not installed there."
        if error.name != missing:
            what = f"Another version of {name} is installed there, without {error.name}."
        install = f"{name}=={version}" if version else name
    elif isinstance(error, ModuleNotFoundError) and missing:
        what = f"{error} there, which the task or its arguments need."
        install = missing
    else:
        return format_error(error) + (
            f"The task {spec.task} cannot run on {location}: a module that is installed there "
            "raises this error when it is imported. Fix the module, or install a version of the "
            f"package that works there ({spec.package or own}), and start the job again.\n"
        )
    trace = "" if missing == own else format_error(error)
    return (
        f"{trace}The task {spec.task} cannot run on {location}. {what} Install it in the "
        f"environment of the workers and start the job again:\n    pip install '{install}'\n"
    )


def exception_of(failure: Failure, job_id: str) -> Exception:
    """Return the exception that Dask gets in place of a value.

    It holds no secrets of runs, and runs no code of the task: Dask handles it in threads of the
    worker, where ``SystemExit`` ends the process.
    """
    line = f"Job {job_id} failed: {failure.error}"
    if failure.exception is not None:
        return CarriedError(line, failure.exception, job_id)
    if failure.status == JobStatus.CANCELED:
        return JobCanceled(job_id=job_id)
    return JobFailed(line, job_id=job_id)
