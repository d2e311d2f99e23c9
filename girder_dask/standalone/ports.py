"""Free ports of this machine."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection

from girder_dask.errors import StackError

__all__ = ["choose", "is_free"]

# Below the range of ephemeral ports, so that no outgoing connection takes a chosen port before its
# part listens on it.
_PORT_RANGE = range(15000, 32000)
_MAX_TRIES = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return True if a server can listen on ``port`` of ``host``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        # As servers do, so that lingering connections of an earlier run do not count.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


def choose(preferred: int | None, host: str = "127.0.0.1", taken: Collection[int] = ()) -> int:
    """Return ``preferred`` if it is free, otherwise any free port.

    Raises
    ------
    StackError
        If no free port is found.
    """
    if preferred and preferred not in taken and is_free(preferred, host):
        return preferred
    for _ in range(_MAX_TRIES):
        port = secrets.choice(_PORT_RANGE)
        if port not in taken and is_free(port, host):
            return port
    raise StackError(f"No free port was found on {host}.")
