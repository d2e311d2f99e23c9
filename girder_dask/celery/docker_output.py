"""Whole output of containers: what docker-py and girder_worker lose of the attached stream."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "AttachedSocket",
    "drain_ended_containers",
    "follow_logs_of_attached_containers",
    "keep_buffered_output",
]

logger = logging.getLogger(__name__)

_OK, _SWITCHED_PROTOCOLS = 200, 101
_CHUNK_BYTES = 64 * 1024

# How long the output of a container that has ended is waited for.
_MAX_DRAIN_S = 10.0
_ENDED = frozenset({"exited", "dead"})


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


def follow_logs_of_attached_containers() -> None:
    """Have docker-py follow the log of a container in place of an attachment that begins with it.

    girder_worker attaches to a container that runs already, and asks for what it has written before
    (``logs``) and what it writes from then on (``stream``). What it writes at that moment comes
    twice, or not at all; a log that is followed has each byte once. An engine whose log cannot be
    read is attached to as before. Without docker-py, nothing is changed.
    """
    try:
        from docker.api.client import APIClient
    except ImportError:
        return
    original = APIClient.attach_socket
    if getattr(original, "follows_logs", False):
        return

    def attach_socket(self: Any, container: Any, params: Any = None, ws: bool = False) -> Any:
        if ws or not params or not (params.get("logs") and params.get("stream")):
            return original(self, container, params, ws)
        name = container.get("Id") if isinstance(container, dict) else container
        wanted = {key: int(bool(params.get(key))) for key in ("stdout", "stderr")}
        url = self._url("/containers/{0}/logs", name)
        response = self._get(url, params={"follow": 1, **wanted}, stream=True, timeout=None)
        if response.status_code != _OK:
            response.close()
            return original(self, container, params, ws)
        readable, writable = socket.socketpair()
        pump = threading.Thread(
            target=_pump, args=(response, writable), name="girder-dask-container-log", daemon=True
        )
        pump.start()
        with readable:
            return readable.makefile("rb", buffering=0)

    attach_socket.follows_logs = True  # type: ignore[attr-defined]
    APIClient.attach_socket = attach_socket


def _pump(response: Any, target: socket.socket) -> None:
    """Copy an answer of the engine into a socket, which ``select`` can wait for."""
    with target, contextlib.closing(response):
        try:
            for data in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                target.sendall(data)
        except ConnectionError:  # a canceled task reads no more
            pass
        except Exception as e:  # noqa: BLE001 - whoever reads finds the end of the output
            logger.warning("The output of a container is cut short: %r", e)


def drain_ended_containers() -> None:
    """Have girder_worker read the output of a container that has ended to its end.

    It stops when the container has ended and nothing has come for a tenth of a second, which is not
    enough for a busy engine. Without docker-py, nothing is changed.
    """
    try:
        from girder_worker.docker import utils
    except ImportError:
        return
    original = utils.select_loop
    if getattr(original, "drains_ended_containers", False):
        return

    def select_loop(
        exit_condition: Callable[[], bool] = lambda: True,
        readers: Sequence[Any] = (),
        writers: Sequence[Any] = (),
    ) -> None:
        # The loop takes streams that have ended out of its lists.
        left, open_writers = list(readers), list(writers)
        original(_DrainedCondition(exit_condition, left), left, open_writers)

    select_loop.drains_ended_containers = True  # type: ignore[attr-defined]
    utils.select_loop = select_loop


class _DrainedCondition:
    """The condition of girder_worker's loop, and the end of the container's output.

    A container that still runs, since its task was canceled, is not waited for.
    """

    def __init__(self, condition: Callable[[], bool], readers: Sequence[Any]) -> None:
        self._condition = condition
        self._readers = readers
        nonlocals = inspect.getclosurevars(condition).nonlocals
        self._container = nonlocals.get("container")
        self._ended_at: float | None = None

    def __call__(self) -> bool:
        if not self._condition():
            return False
        if getattr(self._container, "status", None) not in _ENDED:
            return True
        now = time.monotonic()
        self._ended_at = now if self._ended_at is None else self._ended_at
        has_output = any(
            type(getattr(reader, "input", None)).__name__ == "_SocketReader"
            for reader in self._readers
        )
        return not has_output or now - self._ended_at > _MAX_DRAIN_S


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
