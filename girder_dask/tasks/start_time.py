"""The earliest start of a job: the options ``countdown`` and ``eta`` of a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from girder_dask.errors import SubmissionError
from girder_dask.protocol.execution_options import plain_value
from girder_dask.protocol.messages import MAX_DELAY_S

__all__ = ["START_OPTIONS", "not_before"]

#: The options that set the earliest start. A call has one of them at most.
START_OPTIONS = ("countdown", "eta")


def not_before(name: str, options: Mapping[str, Any]) -> float | None:
    """Return the earliest start of a job in seconds since the epoch, None if it may start now.

    Parameters
    ----------
    name
        The name of the task, for error messages.
    options
        The options of the call: ``countdown`` in seconds from now, or ``eta``, a time. A time
        without a zone is in UTC.

    Raises
    ------
    SubmissionError
        If an option is invalid, or both are given.

    Examples
    --------
    >>> not_before('noon', {'eta': datetime.now(timezone.utc)}) is None
    True
    >>> not_before('noon', {'countdown': 0}) is None
    True
    """
    given = {option: options[option] for option in START_OPTIONS if options.get(option) is not None}
    if not given:
        return None
    if len(given) > 1:
        raise SubmissionError(
            f"{name} was started with countdown= and eta=. Give one of them. No job was created.",
            task=name,
        )
    now = time.time()
    ((option, value),) = given.items()
    read: Callable[[Any, float], tuple[float | None, str]] = (
        _read_countdown if option == "countdown" else _read_eta
    )
    delay_s, expected = read(value, now)
    if delay_s is None:
        raise _refusal(name, option, value, expected)
    if delay_s > MAX_DELAY_S:
        raise _refusal(name, option, value, f"at most {MAX_DELAY_S // 86_400:,} days from now")
    return now + delay_s if delay_s > 0 else None


def _read_countdown(value: Any, _now: float) -> tuple[float | None, str]:
    """Return the seconds from now, None if the option is invalid, and what is expected."""
    expected = "a number of seconds from now"
    try:
        number = plain_value(value)
        valid = isinstance(number, (int, float)) and not isinstance(number, bool)
        delay_s = float(number) if valid else math.nan
    except (TypeError, ValueError, OverflowError):
        return None, expected
    return (None if math.isnan(delay_s) else delay_s), expected


def _read_eta(value: Any, now: float) -> tuple[float | None, str]:
    """Do what :func:`_read_countdown` does, for a time."""
    expected = "a datetime.datetime"
    if not isinstance(value, datetime):
        return None, expected
    moment = value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)
    return moment.timestamp() - now, expected


def _refusal(name: str, option: str, value: Any, expected: str) -> SubmissionError:
    try:
        shown = f"{value!r:.200}"
    except ValueError:  # an integer of thousands of digits
        shown = "…"
    return SubmissionError(
        f"{name} was started with {option}={shown}, where {expected} is expected. "
        "No job was created.",
        task=name,
    )
