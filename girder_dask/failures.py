"""How the end of a run that went wrong is told to the owner of the job."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from girder_dask.errors import TransformError
from girder_dask.jobs import JobSpec

__all__ = ["Place", "name_of", "own_traceback", "summary", "tell", "tell_missing"]

_HERE = str(Path(__file__).parent) + os.sep


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


def own_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error from the first frame that is the user's."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_HERE):
        tb = tb.tb_next
    return tb


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
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        text = ""
    return f"{name}: {text}" if text else name


def name_of(value: Any) -> str:
    """Return the ``repr`` of a value, or the name of its type where that fails."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a foreign __repr__ may raise anything
        return type(value).__name__


def tell(error: BaseException) -> str:
    """Return what the log says of an error that ended a run."""
    if isinstance(error, TransformError):
        return f"{error}\n"
    if isinstance(error, SystemExit):
        return _tell_exit(error)
    if isinstance(error, KeyboardInterrupt) and own_traceback(error) is not None:
        return _format(error) + "The task raised KeyboardInterrupt, which ends it as an error.\n"
    return _format(error)


def _format(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, own_traceback(error)))


def _tell_exit(error: SystemExit) -> str:
    argument = "" if error.code is None else repr(error.code)
    where = traceback.extract_tb(own_traceback(error))
    at = f" in {where[-1].filename}, line {where[-1].lineno}" if where else ""
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
    elif missing:
        what = f"{error} there, which the task or its arguments need."
        install = missing
    else:
        return _format(error) + f"The task {spec.task} cannot be imported on {place}.\n"
    trace = "" if missing == own else _format(error)
    return (
        f"{trace}The task {spec.task} cannot run on {place}. {what} Install it in the "
        f"environment of the workers and start the job again:\n    pip install '{install}'\n"
    )
