"""Tracebacks as the author of a task reads them, without frames of this package above theirs."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from girder_dask.http.http_objects import MAX_LINKED, group_members, linked_exceptions
from girder_dask.utils.foreign_objects import call_or_default, exact_text

__all__ = ["format_error", "own_traceback"]

_HERE = str(Path(__file__).parents[1]) + os.sep
# Where threads, pools and forks of a job are wrapped. What a task calls of ours itself is shown.
_WRAPPERS = tuple(
    str(Path(_HERE, *each))
    for each in (
        ("worker", "capture", ""),
        ("worker", "job_log", ""),
        ("worker", "interruption", ""),
        ("worker", "concurrency", "propagation.py"),
        ("worker", "concurrency", "forks.py"),
        ("worker", "isolation", "child.py"),
        ("utils", "working_directory.py"),
    )
)


def own_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error from the first frame that is the user's."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_HERE):
        tb = tb.tb_next
    return tb


def format_error(error: BaseException) -> str:
    """Return an error with its traceback and causes, without our frames above the user's code.

    >>> format_error(ValueError('no coins'))
    'ValueError: no coins\\n'
    """
    if _is_endless(error):
        stack = traceback.extract_tb(own_traceback(error))
        name, text = type(error).__qualname__, call_or_default(lambda: exact_text(str(error)), "")
        return (
            "Traceback (most recent call last):\n"
            f"{''.join(traceback.format_list(_without_wrappers(stack)))}{name}: {text}\n"
            f"More than {MAX_LINKED} other exceptions, which led to it or are in its group, are "
            "left out.\n"
        )
    told = traceback.TracebackException(type(error), error, own_traceback(error))
    for each in _errors(told):
        each.stack[:] = _without_wrappers(each.stack)
    return "".join(told.format())


def _is_endless(error: BaseException) -> bool:
    """Say whether too many exceptions would be told: a group is told each time that it is met."""
    waiting = list(linked_exceptions(error, MAX_LINKED + 1))
    count = len(waiting)
    while waiting and count <= MAX_LINKED:
        inner = group_members(waiting.pop())
        count += len(inner)
        waiting += inner
    return count > MAX_LINKED


def _errors(told: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting, seen = [told], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [e for e in (each.__cause__, each.__context__) if e is not None]
            waiting += each.exceptions or ()


def _without_wrappers(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Leave out the frames that stand around the work of threads and pools, unless all are such."""
    return [frame for frame in stack if not frame.filename.startswith(_WRAPPERS)] or list(stack)
