"""Execution options: how a job runs, the same for tasks, submissions and job specs."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from girder_dask.protocol.patterns import ISOLATION, explain_mismatch

__all__ = ["OPTION_NAMES", "ExecutionOptions", "plain_value"]

_MAX_INT32 = 2**31 - 1

_Count = Annotated[int, Meta(ge=0, le=_MAX_INT32)]
_Priority = Annotated[int, Meta(ge=-_MAX_INT32, le=_MAX_INT32)]
_Seconds = Annotated[float, Meta(gt=0, le=_MAX_INT32)]
# The upper bound keeps infinity out.
_Amount = Annotated[float, Meta(gt=0, lt=1e300)]
_Isolation = Annotated[str, Meta(pattern=ISOLATION)]


class ExecutionOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a job runs.

    A new option is declared here, documented at :func:`girder_dask.task`, and read where it takes
    effect. Whatever records, sends and checks options takes names and types from this class.

    Attributes
    ----------
    retries
        How many more times a task that raised is tried.
    timeout
        Seconds that the function may run, or None.
    resources
        Dask worker resources that the job needs.
    priority
        Larger runs earlier.
    isolation
        ``'thread'`` or ``'process'``, None for what the worker does by default.
    at_most_once
        Whether a second run must not begin the function, even if the first one was lost.
    """

    retries: _Count = 0
    timeout: _Seconds | None = None
    resources: Mapping[str, _Amount] | None = None
    priority: _Priority = 0
    isolation: _Isolation | None = None
    at_most_once: bool = False

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> ExecutionOptions:
        """Return the options in ``given``, with all numbers as Python numbers.

        Raises
        ------
        ValueError
            If an option is invalid. The message names the option and its value.

        Examples
        --------
        >>> ExecutionOptions.checked({'retries': 2}).retries
        2
        >>> ExecutionOptions.checked({'retries': -1})
        Traceback (most recent call last):
            ...
        ValueError: retries=-1: Expected `int` >= 0
        """
        try:
            plain = {name: plain_value(value) for name, value in given.items()}
            options = msgspec.convert(plain, ExecutionOptions)
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as e:
            raise _first_error(given) or e from e
        options.check()
        return options

    def check(self) -> None:
        """Raise ValueError for what types cannot express, with the path of the field."""
        for name in self.resources or ():
            if not name.strip() or not name.isprintable():
                raise ValueError(f"Expected a printable name, got {name!r:.200} - at `$.resources`")
        if self.at_most_once and self.retries:
            raise ValueError("Expected 0: a job with at_most_once has no retries - at `$.retries`")


#: The names of the execution options.
OPTION_NAMES: tuple[str, ...] = ExecutionOptions.__struct_fields__


def _first_error(given: Mapping[str, Any]) -> ValueError | None:
    """Return an error that names the first invalid option and its value."""
    for name, value in given.items():
        try:
            msgspec.convert({name: plain_value(value)}, ExecutionOptions)
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as e:
            why = explain_mismatch(e) if isinstance(e, msgspec.ValidationError) else str(e)
            return ValueError(f"{name}={_shown(value)}: {why.partition(' - at ')[0]}")
    return None


def plain_value(value: Any) -> Any:
    """Return a number, such as one of NumPy, as a Python number. The same in a mapping."""
    if isinstance(value, (bool, str, int, float, type(None))):
        return value
    if hasattr(value, "__index__"):
        return operator.index(value)
    if isinstance(value, numbers.Real) or hasattr(value, "__float__"):
        return float(value)
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    return value


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.200}"
    except ValueError:  # an integer of thousands of digits
        return "…"
