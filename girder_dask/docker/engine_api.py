"""Requests to a container engine, Docker's or Podman's, over its socket.

The API of the engine is HTTP, and both engines document it as stable. No other package is needed,
nor a program: a worker in a container has the socket, and rarely the ``docker`` command. Paths have
no version, since no version is accepted by both the oldest and the newest engines in use.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from girder_dask.errors import ContainerError

__all__ = ["EngineApi", "EngineRefusal"]

# Seconds for an answer. Creating and starting a container takes long on a busy host.
_TIMEOUT_S = 120.0
_CHUNK_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 1000
_ATTACHED_STATUS = (200, 101)
_BAD_REQUEST = 400


class EngineRefusal(ContainerError):
    """The engine answered with an error. ``status`` is its HTTP status."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = _connected(self._path)
        self.sock.settimeout(_TIMEOUT_S)


def _connected(path: str) -> socket.socket:
    """Return a socket that is connected to the engine.

    Raises
    ------
    ContainerError
        If that is not possible. The message says what to do.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError as e:
        connection.close()
        raise ContainerError(_connection_problem(path, e), permanent=True) from e
    return connection


def _connection_problem(path: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"The account of the worker may not use the container engine at {path}. Add the "
            "account to the group that owns this socket (for Docker: docker), or have the account "
            "run a rootless engine of its own, and restart the worker."
        )
    if isinstance(error, ConnectionRefusedError):
        return f"The container engine at {path} does not run. Start it (systemctl start docker)."
    return (
        f"There is no container engine at {path} ({error.strerror or error}). Install Docker or "
        "Podman on the worker, or set girder.docker.engine to where its socket is."
    )


class EngineApi:
    """The API of the engine at a socket.

    Parameters
    ----------
    path
        The path of the socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make a request, and return the JSON value that answers it, None without one.

        Raises
        ------
        EngineRefusal
            If the engine answers with an error.
        ContainerError
            If it cannot be reached.
        """
        with self._answered(method, path, query, body) as answer:
            data = answer.read()
            return json.loads(data) if data.strip() else None

    def lines(
        self, method: str, path: str, query: Mapping[str, str]
    ) -> Iterator[Mapping[str, Any]]:
        """Make a request, and yield the JSON objects of its answer as they come, one a line."""
        with self._answered(method, path, query, None) as answer:
            for line in answer:
                if line.strip():
                    yield json.loads(line)

    def attach(self, container: str) -> tuple[socket.socket, bytes]:
        """Attach to the output of a container that has not started.

        Returns
        -------
        tuple
            A socket with the output, and what has come of it already with the head of the answer.
        """
        connection = _connected(self.path)
        try:
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(
                f"POST /containers/{container}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\n"
                "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
            )
            head, rest = _read_head(connection)
            status = int(head.split(None, 2)[1])
            if status not in _ATTACHED_STATUS:
                raise _refusal(status, _read_message(connection, rest))
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection, rest

    @contextlib.contextmanager
    def _answered(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
    ) -> Iterator[http.client.HTTPResponse]:
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        headers = {} if body is None else {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with contextlib.closing(_UnixConnection(self.path)) as connection:
            try:
                connection.request(method, target, data, headers)
                answer = connection.getresponse()
                if answer.status >= _BAD_REQUEST:
                    raise _refusal(answer.status, answer.read())
                yield answer
            except (OSError, http.client.HTTPException, ValueError) as e:
                raise ContainerError(
                    f"The container engine at {self.path} does not answer as expected "
                    f"({type(e).__name__}: {e}). It may have been stopped: its log says more."
                ) from e


def _read_head(connection: socket.socket) -> tuple[str, bytes]:
    """Read the head of an answer. Return it, and the bytes that came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(_CHUNK_BYTES)
        if not more or len(data) > _MAX_HEAD_BYTES:
            raise ContainerError("The container engine has closed the connection to its output.")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def _read_message(connection: socket.socket, data: bytes) -> bytes:
    """Read the JSON object in the body of an error."""
    while b"}" not in data and len(data) < _MAX_HEAD_BYTES:
        more = connection.recv(_CHUNK_BYTES)
        if not more:
            break
        data += more
    return data


def _refusal(status: int, body: bytes) -> EngineRefusal:
    """Return the error for an answer; the body may be in chunks."""
    text = body.decode("utf-8", "replace")
    start, end = text.find("{"), text.rfind("}")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = str(json.loads(text[start : end + 1])["message"])
    return EngineRefusal(text.strip()[:_MAX_MESSAGE_CHARACTERS], status=status)
