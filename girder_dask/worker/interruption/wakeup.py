"""Wakeup of an interrupted thread that waits for a condition or a socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import CodeType, FrameType
from typing import Any

try:
    import ssl
except ImportError:  # this Python was built without it
    ssl = None  # type: ignore[assignment]

from girder_dask.worker.interruption import interruptible_waits
from girder_dask.worker.interruption.guarded_frames import frames_from

__all__ = ["wake"]

#: Number of innermost frames that may wait for a socket.
_SOCKET_DEPTH = 4


def wake(frame: FrameType) -> None:
    """Wake a thread, given its innermost frame: notify a condition, or shut down a socket."""
    if interruptible_waits.wake(frame):
        return
    if frame.f_code is threading.Condition.wait.__code__:
        _notify(frame)
        return
    for each in frames_from(frame, _SOCKET_DEPTH):
        found = _socket_of(each)
        if found is not None:
            with contextlib.suppress(OSError):  # the socket is not connected
                # Not the method of SSLSocket, which drops its SSL state.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
            return


def _notify(frame: FrameType) -> None:
    """Do what ``Condition.notify`` does, for a thread that waits for an event, queue or future."""
    condition: Any = frame.f_locals["self"]
    waiter: Any = frame.f_locals.get("waiter")
    if not condition.acquire(False):
        return  # another thread notifies it now, or has just begun to wait
    try:
        if waiter in condition._waiters:  # noqa: SLF001 - notify() cannot name one
            condition._waiters.remove(waiter)  # noqa: SLF001
            waiter.release()
    finally:
        condition.release()


def _socket_functions() -> dict[CodeType, str]:
    """Return the functions that wait for a socket, and their variable that holds it."""
    found = {
        socket.SocketIO.readinto.__code__: "self._sock",
        socket.create_connection.__code__: "sock",
    }
    if ssl is not None:
        for name in ("read", "recv", "recv_into", "do_handshake"):
            found[getattr(ssl.SSLSocket, name).__code__] = "self"
    return found


_SOCKET_FUNCTIONS = _socket_functions()


def _socket_of(frame: FrameType) -> socket.socket | None:
    name = _SOCKET_FUNCTIONS.get(frame.f_code)
    if name is None and frame.f_code.co_name == "create_connection":
        name = "sock"  # urllib3 has its own
    if name is None:
        return None
    first, _, attribute = name.partition(".")
    found = frame.f_locals.get(first)
    found = getattr(found, attribute, None) if attribute else found
    return found if isinstance(found, socket.socket) else None
