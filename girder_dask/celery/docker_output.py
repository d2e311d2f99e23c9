"""Whole output of containers: what docker-py and girder_worker lose of the attached stream."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from girder_dask.celery.run_state import current_run

__all__ = [
    "AttachedSocket",
    "EarlyAttachment",
    "attach_before_start",
    "drain_ended_containers",
    "keep_buffered_output",
]

logger = logging.getLogger(__name__)

_SWITCHED_PROTOCOLS = 101
_STREAMS = ("stdout", "stderr")

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


def attach_before_start() -> None:
    """Have ``docker_run`` attach to its container before the container starts.

    girder_worker attaches to a container that runs already, and asks for what it has written before
    (``logs``) and what it writes from then on (``stream``). What it writes at that moment comes
    twice, or not at all, and what it has written before comes from a log, which most drivers keep
    as text. Without docker-py, nothing is changed.
    """
    try:
        from girder_worker.docker import tasks
    except ImportError:
        return
    original = getattr(tasks, "_run_container", None)
    if original is None or getattr(original, "attaches_before_start", False):
        return

    @functools.wraps(original)
    def run_container(*args: Any, **kwargs: Any) -> Any:
        state = current_run()
        if state is None or state.thread_id != threading.get_ident():
            return original(*args, **kwargs)
        state.reads_output = True
        try:
            return original(*args, **kwargs)
        finally:
            state.reads_output = False

    run_container.attaches_before_start = True  # type: ignore[attr-defined]
    tasks._run_container = run_container  # noqa: SLF001 - nothing public creates the container


class EarlyAttachment:
    """Output of one container from before its start, for whoever attaches to it later.

    It must be read: a container whose output is attached and not read waits once the buffers of the
    engine are full. So only the containers of ``docker_run`` have one.

    Parameters
    ----------
    client
        The client of docker-py that has created the container. Its methods ``start`` and
        ``attach_socket`` are replaced, those of other clients are not.
    container
        The id of the container.
    """

    def __init__(self, client: Any, container: str) -> None:
        self._client = client
        self._container = container
        self._start, self._attach_socket = client.start, client.attach_socket
        self._sockets: dict[str, Any] = {}
        client.start, client.attach_socket = self._start_attached, self._hand_over

    def close(self) -> None:
        """Close the streams that are left, and give the client its methods back."""
        self._drop()
        for name in ("start", "attach_socket"):
            vars(self._client).pop(name, None)

    def _start_attached(self, container: Any, *args: Any, **kwargs: Any) -> None:
        if _id_of(container) == self._container:
            self._attach()
        try:
            self._start(container, *args, **kwargs)
        except BaseException:
            self._drop()
            raise

    def _attach(self) -> None:
        """Attach to both streams, or to none. girder_worker attaches to what is missing."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        self._drop()
        try:
            for name in _STREAMS:
                # Podman sends each stream that is not declined.
                streams = {each: int(each == name) for each in _STREAMS}
                params = {"stdin": 0, **streams, "stream": 1}
                self._sockets[name] = self._attach_socket(self._container, params)
        except (DockerException, RequestException) as e:
            self._drop()
            logger.warning(
                "The container %.12s is attached to after its start, so some of its output may be "
                "lost: %s",
                self._container,
                e,
            )

    def _hand_over(self, container: Any, params: Any = None, ws: bool = False) -> Any:
        """Return the output of a container that has been attached to, or attach to it."""
        params = params or {}
        names = [name for name in _STREAMS if params.get(name)]
        wants_all = params.get("logs") and params.get("stream") and not ws
        if wants_all and len(names) == 1 and _id_of(container) == self._container:
            found = self._sockets.pop(names[0], None)
            if found is not None:
                return found
        return self._attach_socket(container, params or None, ws)

    def _drop(self) -> None:
        while self._sockets:
            _, stream = self._sockets.popitem()
            response = getattr(stream, "_response", None)
            if response is not None:  # which keeps the connection
                response.close()
            stream.close()


def _id_of(container: Any) -> Any:
    return container.get("Id") if isinstance(container, dict) else container


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
        self._has_warned = False

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
        if has_output and now - self._ended_at <= _MAX_DRAIN_S:
            return False
        if has_output and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The output of a container may be incomplete: the engine has not ended it within "
                "%g s of the end of the container",
                _MAX_DRAIN_S,
            )
        return True


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
    except ssl.SSLWantReadError:  # nothing yet, from an engine behind TLS
        return b""
    finally:
        connection.settimeout(timeout_s)
