"""A site of the compose files in ``deploy/compose``, on an engine of the tests."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import girder_client

from tests.support.deploy_engine import BASE, MONGO, DeployEngine

__all__ = ["ComposeSite", "wait_until"]

_COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
_START_TIMEOUT_S = 240.0


def wait_until(ready: Callable[[], Any], what: str, timeout: float = _START_TIMEOUT_S) -> Any:
    """Return the first answer that is true."""
    deadline = time.monotonic() + timeout
    while not (answer := ready()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return answer


class ComposeSite:
    """Containers that ``docker-compose up`` has started.

    Parameters
    ----------
    engine
        The engine.
    directory
        Where a copy of the folder is made.
    address
        The address of the engine's network.
    files
        The compose files.
    settings
        More settings of ``.env``.
    """

    def __init__(
        self,
        engine: DeployEngine,
        directory: Path,
        address: str,
        files: Sequence[str] = ("docker-compose.yml",),
        **settings: str,
    ) -> None:
        self._engine = engine
        self.directory = directory
        self.address = address
        self.url = f"https://{address}:8443/girder"
        shutil.copytree(_COMPOSE, directory, ignore=shutil.ignore_patterns(".env"))
        directory.with_name("images").mkdir()  # whose place is looked at, though nothing is built
        settings = {
            "PUBLIC_URL": self.url,
            "SCHEDULER_PORT": "0.0.0.0:8786",
            "MONGO_IMAGE": MONGO,
            "REDIS_IMAGE": BASE,
            "NGINX_IMAGE": BASE,
            **settings,
        }
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        (directory / ".env").write_text(text)
        self._options = [option for file in files for option in ("--file", str(directory / file))]

    def compose(self, *arguments: str) -> str:
        """Run ``docker-compose`` in the folder, and return what it prints."""
        command = ["docker-compose", "--project-directory", str(self.directory), "--ansi", "never"]
        return self._engine.run(*command, *self._options, *arguments)

    def up(self) -> None:
        """Start it, and wait until all its services are healthy."""
        self.compose("up", "--detach", "--no-build")
        wait_until(lambda: not self.ailing(), f"Not healthy: {self.ailing()}\n{self.logs()}")

    def down(self, *options: str) -> None:
        """Stop and remove the containers."""
        self.compose("down", "--timeout", "20", *options)

    def logs(self) -> str:
        """Return the end of what the services have written."""
        return self.compose("logs", "--tail", "40")

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """Return what the engine says of each container, or of those of a service."""
        ids = [each["Id"] for each in self._engine.containers()]
        found = [self._engine.get(f"/containers/{each}/json") for each in ids]
        label = "com.docker.compose.service"
        return [
            each
            for each in found
            if service in (None, each["Config"]["Labels"].get(label, "")) and is_service(each)
        ]

    def processes(self, service: str, *names: str) -> list[int]:
        """Return the processes of a service, as this machine numbers them, by their arguments."""
        (container,) = self.containers(service)
        namespace = Path(f"/proc/{container['State']['Pid']}/ns/pid").readlink()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes().decode().split("\0")
                if (path / "ns/pid").readlink() == namespace and set(names) <= set(command):
                    found.append(int(path.name))
            except OSError:
                continue
        return sorted(found)

    def ailing(self) -> list[str]:
        """Return the containers that run and are not healthy, or that have failed."""
        return [each["Name"] for each in self.containers() if not is_well(each["State"])]

    def execute(self, service: str, *command: str) -> str:
        """Run a command in the container of a service, and return what it prints."""
        return self.compose("exec", "-T", service, *command)

    def file(self, volume_path: str) -> str:
        """Return a file from the volumes of the services ``setup`` and ``accounts``."""
        service = "accounts" if "/admin/" in volume_path else "setup"
        return self.compose("run", "--rm", "--no-deps", "-T", service, "cat", volume_path)

    @contextlib.contextmanager
    def administrator(self) -> Iterator[girder_client.GirderClient]:
        """Log in as the administrator that the service ``accounts`` has made, through the proxy."""
        state = json.loads(self.file("/etc/girder_dask/admin/administrator.json"))
        client = girder_client.GirderClient(apiUrl=f"{self.url}/api/v1")
        with client.session() as session:
            session.trust_env = False  # its REQUESTS_CA_BUNDLE would take precedence
            session.verify = str(self.authority())
            client.authenticate(state["login"], state["password"])
            yield client

    def authority(self) -> Path:
        """Return a copy of the certificate of the authority for https."""
        path = self.directory / "https-ca.pem"
        path.write_text(self.file("/etc/girder_dask/client/https-ca.pem"))
        return path

    def client_files(self) -> Path:
        """Return a directory with the certificate of a client of the scheduler."""
        directory = self.directory / "client"
        directory.mkdir(exist_ok=True)
        for name in ("ca.pem", "client.pem", "client.key"):
            (directory / name).write_text(self.file(f"/etc/girder_dask/client/{name}"))
        return directory


def is_service(container: dict[str, Any]) -> bool:
    """Return True unless a container was made by ``docker-compose run``."""
    return str(container["Config"]["Labels"].get("com.docker.compose.oneoff")) == "False"


def is_well(state: dict[str, Any]) -> bool:
    """Return True if a container is healthy, runs without a check, or has ended as it should."""
    if state["Status"] == "exited":
        return bool(state["ExitCode"] == 0)
    return bool(state["Running"]) and state.get("Health", {}).get("Status") in (None, "healthy")
