"""The process of a fork server, on the side of its worker."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from girder_dask.worker import gpus
from girder_dask.worker.isolation.fork_server import FORK_REQUEST, MAX_MESSAGE_BYTES

__all__ = ["ForkServerProcess"]


class ForkServerProcess:
    """A fork server, and the channel to it.

    Attributes
    ----------
    is_ready
        Whether the server has imported its modules and can fork.
    is_replaced
        Whether the server does not answer, and another one replaces it.
    """

    def __init__(self) -> None:
        self.is_ready = False
        self.is_replaced = False
        # Sequenced packets keep the requests of several threads apart.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-m", "girder_dask.worker.isolation.fork_server"]
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env=gpus.environment(()),
                pass_fds=[theirs.fileno()],
                cwd="/",  # a directory that is never removed
                start_new_session=True,
            )

    def close(self) -> None:
        """End the server, and wait for its end."""
        self._channel.close()
        self.process.wait()

    def import_all(self, modules: Sequence[str], path: Sequence[str]) -> dict[str, Any] | None:
        """Have the server import modules. Return its report, None if it has ended before."""
        try:
            self._channel.send(json.dumps({"modules": modules, "path": path}).encode())
            report: dict[str, Any] = json.loads(self._channel.recv(MAX_MESSAGE_BYTES) or b"null")
        except OSError:
            return None
        return report

    def request_fork(self, ends: tuple[int, int, int], output: int | None) -> None:
        """Request a fork of the subreaper. If the request is lost, the worker's lifeline closes.

        Parameters
        ----------
        ends
            The descriptors of the lifeline, control socket and exchange file.
        output
            The descriptor for its output, None for those of this process.
        """
        streams = (1, 2) if output is None else (output, output)
        # The directory that a process would inherit if this thread started it.
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                socket.send_fds(self._channel, [FORK_REQUEST], [*ends, *streams, directory])
        finally:
            os.close(directory)

    def request_end(self) -> None:
        """Ask the server to end."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
