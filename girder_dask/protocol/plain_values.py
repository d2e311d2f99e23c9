"""Plain values as JSON that preserves their types, for arguments and results of tasks.

Girder must not unpickle results that workers send, since that may run code. Values of None, bool,
int, float, str, bytes, list, tuple and dict travel as JSON instead and keep their types.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["dump_plain", "load_plain", "pack_message", "unpack_message"]

# The bytes in a value follow the JSON text, which holds their lengths: in the text they would take
# a third more. Such data begins with this character, which begins no JSON text, and the length
# of the text.
_FRAME = struct.Struct(">cQ")
_FRAMED = b"~"

# A JSON object that encodes another type has exactly one of these keys.
_BYTES, _TUPLE, _DICT = "~bytes", "~tuple", "~dict"
_SCALARS = (type(None), bool, int, float, str)

#: Encodes a value that is not plain: returns a tag, which begins with ``~``, and a plain value, or
#: raises TypeError.
Special = Callable[[Any], tuple[str, Any]]


def _no_special(value: Any) -> tuple[str, Any]:
    kind = type(value)
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not a plain type")


def dump_plain(value: Any, special: Special = _no_special) -> bytes:
    """Return a plain value as JSON in UTF-8, followed by the bytes in it.

    Parameters
    ----------
    special
        Encodes values in it that are not plain.

    Raises
    ------
    TypeError
        If it is not plain. A subclass, such as a named tuple, is not plain.
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
        Decoders of the values that are not plain, by tag.

    Raises
    ------
    ValueError
        If :func:`dump_plain` did not return ``data``.
    """
    if data[:1] != _FRAMED:
        return _decoded(json.loads(data), special or {}, _Blobs(data, len(data)))
    if len(data) < _FRAME.size:
        raise ValueError("it is cut off")
    begin = _FRAME.size + _FRAME.unpack_from(data)[1]
    text = json.loads(data[_FRAME.size : begin])
    return _decoded(text, special or {}, _Blobs(data, begin))


class _Blobs:
    """The bytes after the JSON text, in the order in which the text refers to them."""

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
    # A key that looks like a tag must not be read as one.
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


def pack_message(kind: str, what: Any) -> bytes:
    """Return a message of plain values, which runs no code of the task when it is opened."""
    return json.dumps([kind, what]).encode()


def unpack_message(data: bytes) -> tuple[str, Any]:
    """Return the kind and content of a message. The kind is empty for other data.

    Other data can arrive, since a task may write to the socket as well.

    >>> unpack_message(pack_message('cwd', '/tmp')), unpack_message(b'?')
    (('cwd', '/tmp'), ('', None))
    """
    try:
        kind, what = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return "", None
    return (kind, what) if isinstance(kind, str) else ("", None)
