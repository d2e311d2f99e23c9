"""The output of a container as an engine sends it: frames of standard output and standard error."""

from __future__ import annotations

import socket
from collections.abc import Callable

__all__ = ["AttachedOutput"]

_CHUNK_BYTES = 64 * 1024
_HEADER_BYTES = 8
_STDERR = 2


class AttachedOutput:
    """Reader of the frames of a container's output.

    A frame has a header of eight bytes: the stream, three zeros and the length. Its content is
    passed on as it comes.

    Parameters
    ----------
    connection
        The socket that brings the frames.
    first
        What was read from it before.
    write
        Called with the name of the stream, ``'stdout'`` or ``'stderr'``, and bytes.

    Examples
    --------
    >>> import struct
    >>> output = AttachedOutput(socket.socket(), b'', print)
    >>> output.feed(struct.pack('>BxxxL', 1, 5) + b'co')
    stdout b'co'
    >>> output.feed(b'ins' + struct.pack('>BxxxL', 2, 1) + b'!')
    stdout b'ins'
    stderr b'!'
    """

    def __init__(
        self, connection: socket.socket, first: bytes, write: Callable[[str, bytes], object]
    ) -> None:
        self._connection = connection
        self._write = write
        self._header = b""
        self._stream = ""
        self._left = 0
        self.feed(first)

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._connection.fileno()

    def read(self) -> bool:
        """Read what has come. Return False at the end."""
        try:
            data = self._connection.recv(_CHUNK_BYTES)
        except ConnectionError:  # the engine has stopped
            return False
        self.feed(data)
        return bool(data)

    def feed(self, data: bytes) -> None:
        """Pass on the content of frames."""
        while data:
            if not self._left:
                missing = _HEADER_BYTES - len(self._header)
                self._header, data = self._header + data[:missing], data[missing:]
                if len(self._header) < _HEADER_BYTES:
                    return
                self._stream = "stderr" if self._header[0] == _STDERR else "stdout"
                self._left = int.from_bytes(self._header[4:], "big")
                self._header = b""
                continue
            part, data = data[: self._left], data[self._left :]
            self._left -= len(part)
            self._write(self._stream, part)
