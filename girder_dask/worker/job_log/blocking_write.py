"""Complete writes to a descriptor that another process may have made non-blocking."""

from __future__ import annotations

import os
import select

__all__ = ["write_all"]


def write_all(fd: int, data: bytes) -> None:
    """Write all data to a descriptor. Wait for room even if it is non-blocking.

    A program that shares the descriptor may have made it non-blocking for all processes: ``node``
    and ``ssh`` do so with the standard output that they inherit.

    Raises
    ------
    OSError
        If the descriptor has no reader left.

    Examples
    --------
    >>> read, write = os.pipe()
    >>> write_all(write, b"7 coins")
    >>> os.read(read, 10)
    b'7 coins'
    """
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            room = select.poll()
            room.register(fd, select.POLLOUT)
            room.poll()
