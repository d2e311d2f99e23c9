"""Plain values as JSON text, and back.

What a function returned comes to Girder from a worker. Girder must not unpickle it, since
that may run code. Values that are made of None, bool, int, float, str, bytes, list, tuple
and dict alone travel as JSON instead, and come back as what they were.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["dump_plain", "load_plain"]

# JSON objects that stand for something else have exactly one of these keys.
_BYTES, _TUPLE, _DICT = "~bytes", "~tuple", "~dict"
_SCALARS = (type(None), bool, int, float, str)

#: Writes what is not plain: returns a tag, which begins with ``~``, and a plain value, or
#: raises TypeError.
Special = Callable[[Any], tuple[str, Any]]


def _no_special(value: Any) -> tuple[str, Any]:
    kind = type(value)
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is no plain type")


def dump_plain(value: Any, special: Special = _no_special) -> bytes:
    """Return a plain value as JSON, in UTF-8.

    Parameters
    ----------
    special
        Writes what is not plain within it.

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
    text = json.dumps(_encoded(value, special), separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def load_plain(data: bytes, special: Mapping[str, Callable[[Any], Any]] | None = None) -> Any:
    """Undo :func:`dump_plain`.

    Parameters
    ----------
    special
        For each tag of what is not plain, what reads the value that was written for it.

    Raises
    ------
    ValueError
        If ``data`` is nothing that :func:`dump_plain` returned.
    """
    return _decoded(json.loads(data), special or {})


def _encoded(value: Any, special: Special) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        return [_encoded(v, special) for v in value]
    if kind is tuple:
        return {_TUPLE: [_encoded(v, special) for v in value]}
    if kind is bytes:
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if kind is not dict:
        tag, plain = special(value)
        return {tag: _encoded(plain, _no_special)}
    # A key that looks like a tag must not be taken for one.
    if all(type(k) is str and not k.startswith("~") for k in value):
        return {k: _encoded(v, special) for k, v in value.items()}
    return {_DICT: [[_encoded(k, special), _encoded(v, special)] for k, v in value.items()]}


def _decoded(value: Any, special: Mapping[str, Callable[[Any], Any]]) -> Any:
    if isinstance(value, list):
        return [_decoded(v, special) for v in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(_decoded(v, special) for v in value[_TUPLE])
    if _BYTES in value:
        return base64.b64decode(value[_BYTES])
    if _DICT in value:
        return {_decoded(k, special): _decoded(v, special) for k, v in value[_DICT]}
    for tag in special.keys() & value.keys():
        return special[tag](_decoded(value[tag], {}))
    return {k: _decoded(v, special) for k, v in value.items()}
