"""Tracebacks for authors of tasks, without frames of this package above their own."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from girder_dask.http.exception_requests import MAX_LINKED, group_members, linked_exceptions
from girder_dask.utils.foreign_objects import call_or_default, exact_text

__all__ = ["format_error", "own_traceback"]

_PACKAGE_DIRECTORY = str(Path(__file__).parents[1]) + os.sep
# Wrappers of threads, pools and forks. Other functions of ours were called by the task itself.
_WRAPPER_PATHS = tuple(
    str(Path(_PACKAGE_DIRECTORY, *each))
    for each in (
        ("worker", "capture", ""),
        ("worker", "job_log", ""),
        ("worker", "interruption", ""),
        ("worker", "propagation", ""),
        ("worker", "isolation", "child.py"),
        ("utils", "working_directory.py"),
    )
)


def own_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error, beginning with the user's first frame."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_PACKAGE_DIRECTORY):
        tb = tb.tb_next
    return tb


def format_error(error: BaseException) -> str:
    """Format an error with its traceback and causes, without our frames above the user's code.

    >>> format_error(ValueError('no coins'))
    'ValueError: no coins\\n'
    """
    if _is_too_long(error):
        stack = traceback.extract_tb(own_traceback(error))
        name, text = type(error).__qualname__, call_or_default(lambda: exact_text(str(error)), "")
        return (
            "Traceback (most recent call last):\n"
            f"{''.join(traceback.format_list(_without_wrappers(stack)))}{name}: {text}\n"
            f"More than {MAX_LINKED} other exceptions, which led to it or are in its group, are "
            "left out.\n"
        )
    formatted = traceback.TracebackException(type(error), error, own_traceback(error))
    for each in _errors(formatted):
        each.stack[:] = _without_wrappers(each.stack)
    return "".join(formatted.format())


def _is_too_long(error: BaseException) -> bool:
    """Return True if a traceback would show too many exceptions. Groups count each time."""
    waiting = list(linked_exceptions(error, MAX_LINKED + 1))
    count = len(waiting)
    while waiting and count <= MAX_LINKED:
        inner = group_members(waiting.pop())
        count += len(inner)
        waiting += inner
    return count > MAX_LINKED


def _errors(formatted: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting, seen = [formatted], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [e for e in (each.__cause__, each.__context__) if e is not None]
            waiting += each.exceptions or ()


def _without_wrappers(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Return a stack without the frames of wrappers, or as it is if there are no others."""
    return [frame for frame in stack if not frame.filename.startswith(_WRAPPER_PATHS)] or list(
        stack
    )
