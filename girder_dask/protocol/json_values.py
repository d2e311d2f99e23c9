"""Plain values as JSON text, and back.

What a function returned comes to Girder from a worker. Girder must not unpickle it, since
that may run code. Values that are made of None, bool, int, float, str, bytes, list, tuple
and dict alone travel as JSON instead, and come back as what they were.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["dump_plain", "load_plain", "opened_message", "packed_message"]

# Where a value holds bytes, they stand one after another behind the JSON text, which has their
# lengths: in the text they would take a third more. Such data begins with this and the
# length of the text; no JSON text begins so.
_FRAME = struct.Struct(">cQ")
_FRAMED = b"~"

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
    """Return a plain value as JSON, in UTF-8, and the bytes in it behind that.

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
    blobs: list[bytes] = []
    encoded = _encoded(value, special, blobs)
    text = json.dumps(encoded, separators=(",", ":"), ensure_ascii=False)
    data = text.encode("utf-8", "surrogatepass")
    return b"".join([_FRAME.pack(_FRAMED, len(data)), data, *blobs]) if blobs else data


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
    if data[:1] != _FRAMED:
        return _decoded(json.loads(data), special or {}, _Blobs(data, len(data)))
    if len(data) < _FRAME.size:
        raise ValueError("it is cut off")
    begin = _FRAME.size + _FRAME.unpack_from(data)[1]
    text = json.loads(data[_FRAME.size : begin])
    return _decoded(text, special or {}, _Blobs(data, begin))


class _Blobs:
    """The bytes behind the JSON text, in the order in which the text names them."""

    def __init__(self, data: bytes, begin: int) -> None:
        self._data = data
        self._position = begin

    def take(self, length: Any) -> bytes:
        end = self._position + operator.index(length)
        if not self._position <= end <= len(self._data):
            raise ValueError("bytes in it are cut off")
        blob = self._data[self._position : end]
        self._position = end
        return blob


def _encoded(value: Any, special: Special, blobs: list[bytes]) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        return [_encoded(v, special, blobs) for v in value]
    if kind is tuple:
        return {_TUPLE: [_encoded(v, special, blobs) for v in value]}
    if kind is bytes:
        blobs.append(value)
        return {_BYTES: len(value)}
    if kind is not dict:
        tag, plain = special(value)
        return {tag: _encoded(plain, _no_special, blobs)}
    # A key that looks like a tag must not be taken for one.
    if all(type(k) is str and not k.startswith("~") for k in value):
        return {k: _encoded(v, special, blobs) for k, v in value.items()}
    return {
        _DICT: [
            [_encoded(k, special, blobs), _encoded(v, special, blobs)] for k, v in value.items()
        ]
    }


def _decoded(value: Any, special: Mapping[str, Callable[[Any], Any]], blobs: _Blobs) -> Any:
    if isinstance(value, list):
        return [_decoded(v, special, blobs) for v in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(_decoded(v, special, blobs) for v in value[_TUPLE])
    if _BYTES in value:
        return blobs.take(value[_BYTES])
    if _DICT in value:
        return {_decoded(k, special, blobs): _decoded(v, special, blobs) for k, v in value[_DICT]}
    for tag in special.keys() & value.keys():
        return special[tag](_decoded(value[tag], {}, blobs))
    return {k: _decoded(v, special, blobs) for k, v in value.items()}


def packed_message(kind: str, what: Any) -> bytes:
    """Return a message, of plain values: opening it runs no code of the task."""
    return json.dumps([kind, what]).encode()


def opened_message(data: bytes) -> tuple[str, Any]:
    """Open a message. What is none has an empty kind: a task may write to the socket, too.

    >>> opened_message(packed_message('cwd', '/tmp')), opened_message(b'?')
    (('cwd', '/tmp'), ('', None))
    """
    try:
        kind, what = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return "", None
    return (kind, what) if isinstance(kind, str) else ("", None)
