"""Free ports of this machine."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection

from girder_dask.errors import StackError

__all__ = ["choose", "is_free"]

# Below the range from which systems take the ports of outgoing connections, so that a
# chosen port is still free when its part gets round to listening on it.
_PORT_RANGE = range(15000, 32000)
_MAX_TRIES = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether a server can listen on ``port`` of ``host``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        # As servers do: connections of an earlier run that still linger are no obstacle.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


def choose(preferred: int | None, host: str = "127.0.0.1", taken: Collection[int] = ()) -> int:
    """Return ``preferred`` if it is free, and any free port otherwise.

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
