"""A separate RabbitMQ from the system's package, with its own node, ports and files."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from girder_dask.standalone import ports
from girder_dask.standalone.stack_part import Part

__all__ = ["Rabbit", "program"]

# Debian's own wrapper, which is on the PATH, insists on root or the account rabbitmq.
_PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/local/sbin/rabbitmq-server")


def program() -> str | None:
    """Return the path of the server, None if it is not installed."""
    for place in _PLACES:
        if os.access(place, os.X_OK):
            return place
    return None


class Rabbit:
    """The server and the name server that it needs.

    Parameters
    ----------
    directory
        The directory of its data.
    env
        The environment of its processes.
    """

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._directory = directory
        self._port = ports.choose(None)
        self._names = ports.choose(None, taken=[self._port])
        between = ports.choose(None, taken=[self._port, self._names])
        self._env = {
            **env,
            "HOME": str(directory),  # where the cookie is
            "ERL_EPMD_PORT": str(self._names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "girder-dask@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(between),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        }

    @property
    def broker(self) -> str:
        """The address for Celery, with the account that RabbitMQ has by default."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}/"

    @property
    def backend(self) -> str:
        """The address of Celery's results, which girder_worker keeps there as well."""
        return f"rpc://guest:guest@127.0.0.1:{self._port}/"

    def parts(self, log: Path) -> Iterator[Part]:
        """Return the processes, the name server first.

        Parameters
        ----------
        log
            A directory for the logs.
        """
        server = program()
        assert server is not None
        commands = {
            "epmd": ([shutil.which("epmd") or "epmd", "-port", str(self._names)], self._names),
            "rabbitmq": ([server], self._port),
        }
        for name, (command, port) in commands.items():
            yield Part(
                name,
                command,
                env=self._env,
                directory=self._directory,
                log=log / f"{name}.log",
                check=lambda port=port: _listens(port),
                grace=20,
            )


def _listens(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0
