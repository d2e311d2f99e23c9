"""Values of job document fields that both strict JSON and MongoDB can hold.

Girder, notebooks and running jobs submit calls. All three accept the same values.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

__all__ = ["MAX_FIELD_LEVELS", "checked_fields"]

#: The most levels of lists and mappings in a field. MongoDB allows 100 in a document.
MAX_FIELD_LEVELS = 50

_AS_IS = (type(None), bool, str, bytes, datetime)


def checked_fields(fields: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return fields with plain values: tuples as lists, NumPy numbers as Python numbers.

    Parameters
    ----------
    fields
        The fields by their names.
    path
        The name of the fields in error messages.

    Raises
    ------
    ValueError
        If a job document cannot hold one of the values; the message says which.

    Examples
    --------
    >>> checked_fields({'meta': {'sizes': (1, 2.5)}})
    {'meta': {'sizes': [1, 2.5]}}
    >>> checked_fields({'meta': {'sizes': [1, float('nan')]}}, 'other_fields')
    Traceback (most recent call last):
        ...
    ValueError: other_fields['meta']['sizes'][1] is nan, which is not a JSON number
    """
    return _mapping(fields, path, 0)


def _mapping(value: Mapping[Any, Any], path: str, level: int) -> dict[str, Any]:
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"{path} has the key {name!r:.100}, which is not a string")
        if "\0" in name or not _is_utf8(name):
            raise ValueError(f"{path} has the key {name!r:.100}, which MongoDB cannot hold")
    return {str(k): _checked(v, f"{path}[{k!r:.100}]", level + 1) for k, v in value.items()}


def _is_utf8(text: str) -> bool:
    """Return True if a text has no lone surrogates, which names of files may have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(value: numbers.Real, path: str) -> float:
    if isinstance(value, numbers.Integral):
        whole = int(value)
        if not -(2**63) <= whole < 2**63:
            raise ValueError(f"{path} is an integer that takes more than 64 bits")
        return whole
    if not math.isfinite(value):
        raise ValueError(f"{path} is {value}, which is not a JSON number")
    return float(value)


def _checked(value: Any, path: str, level: int) -> Any:
    if isinstance(value, str) and not _is_utf8(value):
        raise ValueError(f"{path} is {value!r:.100}, which UTF-8 cannot hold")
    if isinstance(value, _AS_IS):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, numbers.Real):
        return _number(value, path)
    if isinstance(value, (Mapping, list, tuple)):
        if level >= MAX_FIELD_LEVELS:
            raise ValueError(f"{path:.200}… is nested more than {MAX_FIELD_LEVELS} levels deep")
        if isinstance(value, Mapping):
            return _mapping(value, path, level)
        return [_checked(v, f"{path}[{n}]", level + 1) for n, v in enumerate(value)]
    kind = type(value)
    if kind.__name__ == "ObjectId" and kind.__module__.startswith("bson"):
        return value
    raise ValueError(
        f"{path} is of type {kind.__module__}.{kind.__qualname__}, which a job document cannot "
        "hold: give numbers, text, bytes, dates, lists and mappings"
    )
