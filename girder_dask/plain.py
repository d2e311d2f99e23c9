"""Plain values as JSON text, and back.

What a function returned comes to Girder from a worker. Girder must not unpickle it, since
that may run code. Values that are made of None, bool, int, float, str, bytes, list, tuple
and dict alone travel as JSON instead, and come back as what they were.
"""

from __future__ import annotations

import base64
import json
from typing import Any

__all__ = ["dump_plain", "load_plain"]

# JSON objects that stand for something else have exactly one of these keys.
_BYTES, _TUPLE, _DICT = "~bytes", "~tuple", "~dict"
_TAGS = {_BYTES, _TUPLE, _DICT}
_SCALARS = (type(None), bool, int, float, str)


def dump_plain(value: Any) -> bytes:
    """Return a plain value as JSON, in UTF-8.

    Raises
    ------
    TypeError
        If it is not plain. A subclass, such as a named tuple, is not.
    RecursionError
        If it is nested too deep.

    Examples
    --------
    >>> load_plain(dump_plain({'coins': (24, 37.2), 1: [b'x', None]}))
    {'coins': (24, 37.2), 1: [b'x', None]}
    """
    return json.dumps(_encoded(value), separators=(",", ":")).encode("utf-8", "surrogatepass")


def load_plain(data: bytes) -> Any:
    """Undo :func:`dump_plain`.

    Raises
    ------
    ValueError
        If ``data`` is nothing that :func:`dump_plain` returned.
    """
    return _decoded(json.loads(data))


def _encoded(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        return [_encoded(v) for v in value]
    if kind is tuple:
        return {_TUPLE: [_encoded(v) for v in value]}
    if kind is bytes:
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if kind is not dict:
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is no plain type")
    if all(type(k) is str for k in value) and not _TAGS & value.keys():
        return {k: _encoded(v) for k, v in value.items()}
    return {_DICT: [[_encoded(k), _encoded(v)] for k, v in value.items()]}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(_decoded(v) for v in value[_TUPLE])
    if _BYTES in value:
        return base64.b64decode(value[_BYTES])
    if _DICT in value:
        return {_decoded(k): _decoded(v) for k, v in value[_DICT]}
    return {k: _decoded(v) for k, v in value.items()}
