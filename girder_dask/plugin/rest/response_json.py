"""Responses as strict JSON, whatever a document holds.

Girder turns the value of a route into JSON after the route has returned. If JSON cannot hold the
value, a request that has taken effect is answered with the status 500. So the routes of this
package return JSON that :func:`encode` has made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from girder.utility import JsonEncoder

__all__ = ["MAX_NESTING_LEVELS", "encode", "nesting_levels", "to_json_values"]

#: The most levels of lists and objects in requests and answers.
MAX_NESTING_LEVELS = 150


def encode(value: Any) -> bytes:
    """Encode any value as strict JSON.

    >>> encode({"total": float("nan"), 5: "x"})
    b'{"5": "x", "total": null}'
    """
    try:
        return _dumped(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _dumped(to_json_values(value))


def _dumped(value: Any) -> bytes:
    text: str = json.dumps(value, sort_keys=True, allow_nan=False, cls=JsonEncoder)
    return text.encode("ascii")


def to_json_values(value: Any, _level: int = 0) -> Any:
    """Return a value that JSON can hold. Numbers that are not finite become null.

    >>> to_json_values({"a": float("inf"), 1: {2}, "b": [b"x"]})
    {'a': None, '1': [2], 'b': ["b'x'"]}
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if _level >= MAX_NESTING_LEVELS:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): to_json_values(inner, _level + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_values(inner, _level + 1) for inner in value]
    try:
        return json.loads(_dumped(value))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return str(value)


def nesting_levels(value: Any) -> int:
    """Return the number of nested levels of lists and mappings.

    >>> nesting_levels(5), nesting_levels([]), nesting_levels({"a": [1, {"b": 2}]})
    (0, 1, 3)
    """
    depth, inner = 0, [value] if isinstance(value, (dict, list)) else []
    while inner:
        depth += 1
        if depth > MAX_NESTING_LEVELS:
            break
        inner = [
            part
            for container in inner
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, (dict, list))
        ]
    return depth
