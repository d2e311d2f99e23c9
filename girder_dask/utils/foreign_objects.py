"""Safe calls of methods of objects whose classes are unknown.

A method such as ``__str__`` may raise anything, ``SystemExit`` too. It may also return a subclass
of ``str`` whose methods would run later, in other threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from girder_dask.errors import JobInterrupted

__all__ = ["call_or_default", "exact_bytes", "exact_output", "exact_text"]

T = TypeVar("T")


def call_or_default(function: Callable[[], T], default: T) -> T:
    """Return what a function returns, or a default if it raises anything but an interruption.

    >>> call_or_default(lambda: str(exit), '?'), call_or_default(lambda: exit(3), '?')
    ('Use exit() or Ctrl-D (i.e. EOF) to exit', '?')
    """
    try:
        return function()
    except JobInterrupted:
        raise
    except BaseException:  # noqa: BLE001 - SystemExit would end the process
        return default


def exact_text(text: str) -> str:
    """Return text as a plain ``str``, without calling methods of a subclass.

    >>> class Loud(str): __str__ = __len__ = lambda self: 1 / 0
    >>> type(exact_text(Loud('coins')))
    <class 'str'>
    """
    return text if type(text) is str else str.__str__(text)


def exact_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Return bytes as plain ``bytes``, without calling methods of a subclass.

    >>> exact_bytes(b'coins')
    b'coins'
    """
    return data if type(data) is bytes else bytes.join(b"", (data,))


def exact_output(data: str | bytes | bytearray | memoryview) -> str | bytes:
    """Return text or bytes that something writes as ``str`` or ``bytes``, and no subclass.

    Raises
    ------
    TypeError
        If it is neither, as the ``write`` of a file does.
    """
    if isinstance(data, str):
        return exact_text(data)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"write() argument must be str or bytes, not {type(data).__name__}")
    # Not of a memoryview, whose bytes may lie apart.
    return data.tobytes() if type(data) is memoryview else exact_bytes(data)
