"""Wire types as JSON: bytes and times are tagged."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = ["from_json", "to_json"]

_BYTES, _TIME, _ESCAPED = "b64", "date", "esc"
_TAGS = frozenset((_BYTES, _TIME, _ESCAPED))
_JSON_TYPES = frozenset((str, int, float, bool, type(None)))


def to_json(wire: Any) -> Any:
    """Return wire types in a form fit for JSON.

    Bytes become ``{"b64": …}``, times ``{"date": …}``, and a mapping that looks like one of these
    ``{"esc": …}``. An ObjectId becomes its text.

    >>> from_json(to_json({"payload": b"x", "n": [1, 2], "m": {"b64": "?"}}))
    {'payload': b'x', 'n': [1, 2], 'm': {'b64': '?'}}
    """
    kind = type(wire)
    if kind in _JSON_TYPES:
        return wire
    if kind is dict or isinstance(wire, Mapping):
        written = {k: to_json(v) for k, v in wire.items()}
        return {_ESCAPED: written} if len(written) == 1 and _TAGS & written.keys() else written
    if isinstance(wire, (list, tuple)):
        return [to_json(v) for v in wire]
    if isinstance(wire, bytes):
        return {_BYTES: base64.b64encode(wire).decode("ascii")}
    if isinstance(wire, datetime):
        return {_TIME: wire.isoformat()}
    return str(wire) if kind.__name__ == "ObjectId" else wire


def from_json(value: Any) -> Any:
    """Undo :func:`to_json`."""
    if isinstance(value, dict):
        if len(value) == 1 and _TAGS & value.keys():
            return _from_tagged(*next(iter(value.items())))
        return {k: from_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [from_json(v) for v in value]
    return value


def _from_tagged(tag: str, value: Any) -> Any:
    if tag == _BYTES:
        return base64.b64decode(value)
    if tag == _TIME:
        return datetime.fromisoformat(value)
    return {k: from_json(v) for k, v in value.items()}
