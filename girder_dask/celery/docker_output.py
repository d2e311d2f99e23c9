"""Whole output of containers: what docker-py loses of the stream that it attaches to."""

from __future__ import annotations

import os
import socket
from typing import Any

__all__ = ["AttachedSocket", "keep_buffered_output"]

_SWITCHED_PROTOCOLS = 101


class AttachedSocket(socket.SocketIO):
    """The raw stream of an attached container, behind bytes that have been read from it already.

    ``select`` and ``poll`` find it readable while such bytes are left.

    Parameters
    ----------
    raw
        The stream. It is closed with this one.
    data
        The bytes. There is at least one.
    """

    def __init__(self, raw: socket.SocketIO, data: bytes) -> None:
        super().__init__(_connection(raw), "rb")
        self._raw = raw
        self._data = data
        # An event counter that is not zero is readable.
        self._readable = os.eventfd(1, os.EFD_CLOEXEC)

    def readinto(self, buffer: Any) -> int | None:
        """Read the bytes first, then from the stream."""
        if not self._data:
            return self._raw.readinto(buffer)
        n = min(len(buffer), len(self._data))
        buffer[:n] = self._data[:n]
        self._data = self._data[n:]
        if not self._data:
            os.close(self._readable)
        return n

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._readable if self._data else self._raw.fileno()

    def close(self) -> None:
        """Close the stream."""
        if self.closed:
            return
        if self._data:
            self._data = b""
            os.close(self._readable)
        super().close()
        self._raw.close()


def keep_buffered_output() -> None:
    """Have docker-py return sockets of attached containers with all that the engine has sent.

    It reads the head of the engine's answer with a buffer, and then returns the socket below. What
    came together with the head stays in the buffer. In a process with one thread that is rare; in
    one with several, a third of short containers lose all their output. Without docker-py,
    nothing is changed.
    """
    try:
        from docker.api.client import APIClient
    except ImportError:
        return
    original = APIClient._get_raw_response_socket  # noqa: SLF001 - the cause is there
    if getattr(original, "keeps_buffered_output", False):
        return

    def get_raw_response_socket(self: Any, response: Any) -> Any:
        found = original(self, response)
        if response.status_code != _SWITCHED_PROTOCOLS:
            return found
        reader = response.raw._fp.fp  # noqa: SLF001 - as docker-py does
        raw = getattr(reader, "raw", None)
        if not isinstance(raw, socket.SocketIO) or not hasattr(reader, "peek"):
            return found
        data = _buffered(reader, raw)
        return AttachedSocket(raw, data) if data else found

    get_raw_response_socket.keeps_buffered_output = True  # type: ignore[attr-defined]
    APIClient._get_raw_response_socket = get_raw_response_socket  # noqa: SLF001


def _connection(raw: Any) -> socket.socket:
    found: socket.socket = raw._sock  # noqa: SLF001 - nothing public leads from one to the other
    return found


def _buffered(reader: Any, raw: socket.SocketIO) -> bytes:
    """Return what a buffered reader has read ahead, without waiting for more."""
    connection = _connection(raw)
    timeout_s = connection.gettimeout()
    connection.settimeout(0)
    try:
        return bytes(reader.peek())
    finally:
        connection.settimeout(timeout_s)
