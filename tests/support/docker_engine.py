"""Container engines for tests: Docker and Podman, each with a directory of its own.

The fixtures ``docker_engine`` and ``podman_engine`` start one engine for each process of pytest,
with the image ``busybox:latest``, and stop it again. No registry, no network and no engine that the
machine may have is used. Containers have no network, whatever they ask for.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.girder_services import free_port

__all__ = ["IMAGE", "Engine", "docker_engine", "podman_engine", "tls_engine", "worker_settings"]

#: The image that each engine has.
IMAGE = "busybox:latest"

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.02
_BUSYBOX = Path("/bin/busybox")
_NEEDS = (
    "To run it, as root: apt-get install --no-install-recommends docker.io podman busybox-static "
    "(scripts/bootstrap test does)"
)
# Debian's containers.conf has limits that a machine may not allow, and a log driver of systemd.
_PODMAN = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{directory}/tmp"
"""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """A container engine that this process has started.

    Parameters
    ----------
    name
        ``'docker'`` or ``'podman'``.
    directory
        The directory of all that it stores. Its path is short, as that of a socket must be.
    options
        More options of ``dockerd``.

    Attributes
    ----------
    socket
        The path of its socket.
    """

    def __init__(self, name: str, directory: Path, options: Sequence[str] = ()) -> None:
        self.name = name
        self._options = options
        self.directory = directory
        self.socket = directory / "engine.sock"
        self._log = directory / "engine.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its socket, as ``DOCKER_HOST`` takes it."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The process of the engine."""
        assert self._process is not None
        return self._process.pid

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine, and return when it answers."""
        environment = dict(os.environ)
        (self.directory / "daemon.json").write_text("{}")
        if self.name == "podman":
            (self.directory / "tmp").mkdir(exist_ok=True)
            configuration = self.directory / "containers.conf"
            configuration.write_text(_PODMAN.format(directory=self.directory))
            environment["CONTAINERS_CONF"] = str(configuration)
        with self._log.open("ab") as log:
            # It ends with this process, also if that is killed.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,  # where Podman's conmon writes files
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(_POLL_S)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Remove all containers, and stop the engine."""
        process = self._process
        if process is None:
            return
        if process.poll() is None and signal_number == signal.SIGTERM:
            for container in self.containers():
                self.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")
        process.send_signal(signal_number)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def unmount(self) -> None:
        """Unmount what the engine has left mounted in its directory."""
        for line in Path("/proc/self/mounts").read_text().splitlines()[::-1]:
            where = line.split()[1]
            if where.startswith(f"{self.directory}/"):
                subprocess.run(["umount", where], check=True)

    def _command(self) -> list[str]:
        where = str(self.directory)
        if self.name == "docker":
            return [
                *("dockerd", "--host", self.url, "--pidfile", f"{where}/engine.pid"),
                *("--data-root", f"{where}/data", "--exec-root", f"{where}/exec"),
                *("--config-file", f"{where}/daemon.json"),
                # Rules of the machine's network stay as they are.
                *("--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false"),
                *self._options,
            ]
        return [
            *("podman", "--root", f"{where}/data", "--runroot", f"{where}/run"),
            # Nothing stays mounted if the tests are killed.
            *("--storage-opt", "overlay.skip_mount_home=true"),
            *("system", "service", "--time", "0", self.url),
        ]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.request("GET", "/_ping")[0] == 200
        return False

    # -- requests ------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json"
    ) -> tuple[int, bytes]:
        """Send a request to the engine's API, and return the status and body of its answer."""
        with contextlib.closing(_UnixConnection(self.socket)) as connection:
            headers = {} if body is None else {"Content-Type": kind}
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def get(self, path: str) -> Any:
        """Return what the engine answers to a GET."""
        status, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def containers(self) -> list[dict[str, Any]]:
        """Return all containers, also those that have ended."""
        found: list[dict[str, Any]] = self.get("/containers/json?all=1")
        return found

    def volumes(self) -> list[str]:
        """Return the names of all volumes."""
        return [each["Name"] for each in self.get("/volumes")["Volumes"] or ()]

    def add_image(
        self, name: str, files: Mapping[str, str | bytes], changes: Sequence[str] = ()
    ) -> None:
        """Make an image of busybox with its commands in ``/bin``, and of executable files.

        Parameters
        ----------
        name
            Its name, such as ``tools:1``.
        files
            The content of more files by their paths.
        changes
            Lines of a Dockerfile, such as ``ENTRYPOINT ["/run.sh"]``.
        """
        repository, _, tag = name.partition(":")
        query = [("fromSrc", "-"), ("repo", repository), ("tag", tag or "latest")]
        query += [("changes", change) for change in changes]
        path = f"/images/create?{urllib.parse.urlencode(query)}"
        status, body = self.request("POST", path, _archive(files), kind="application/x-tar")
        assert status == 200, body
        assert b"error" not in body, body


def _archive(files: Mapping[str, str | bytes]) -> bytes:
    packed = io.BytesIO()
    busybox = _BUSYBOX.read_bytes()
    applets = subprocess.run([_BUSYBOX, "--list"], capture_output=True, check=True, text=True)
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("bin", "etc", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(directory)
        content = {"bin/busybox": busybox, "etc/passwd": "root:x:0:0:root:/:/bin/sh\n", **files}
        for name, text in content.items():
            data = text.encode() if isinstance(text, str) else text
            file = tarfile.TarInfo(name.lstrip("/"))
            file.mode, file.size = 0o755, len(data)
            tar.addfile(file, io.BytesIO(data))
        for name in applets.stdout.split():
            link = tarfile.TarInfo(f"bin/{name}")
            if name != "busybox":
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
    return packed.getvalue()


@contextlib.contextmanager
def _running(name: str, program: str, options: Sequence[str] = ()) -> Iterator[Engine]:
    """Run an engine with the image ``busybox:latest``. Skip the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip(f"This test starts {program}, which needs root. {_NEEDS}.")
    for needed in (program, "setpriv", str(_BUSYBOX)):
        if shutil.which(needed) is None:
            pytest.skip(f"This test needs {needed}. {_NEEDS}.")
    with tempfile.TemporaryDirectory(prefix=f"gd-{name}-", ignore_cleanup_errors=True) as directory:
        engine = Engine(name, Path(directory), options)
        engine.start()
        try:
            engine.add_image(IMAGE, {})
            yield engine
        finally:
            engine.stop()
            engine.unmount()


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """A Docker engine for all tests of this process."""
    with _running("docker", "dockerd") as engine:
        yield engine


@contextlib.contextmanager
def tls_engine(directory: Path) -> Iterator[tuple[Engine, dict[str, str]]]:
    """Run a Docker engine that takes clients with a certificate alone, and yield it.

    Parameters
    ----------
    directory
        An empty directory for certificates of ``girder-dask certs``.

    Yields
    ------
    The engine, and the variables with which a worker finds it.
    """

    def certs(*arguments: str) -> None:
        command = [sys.executable, "-m", "girder_dask.cli", "certs", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    certs("init", str(directory))
    certs("issue", str(directory), "scheduler", "127.0.0.1", "--name", "engine")
    certs("issue", str(directory), "client", "127.0.0.1", "--name", "client")
    of_client = directory / "of-client"
    of_client.mkdir()
    for source, name in (("ca.pem", "ca"), ("client.pem", "cert"), ("client.key", "key")):
        shutil.copy(directory / source, of_client / f"{name}.pem")
    port = free_port()
    options = [
        *("--host", f"tcp://127.0.0.1:{port}", "--tlsverify"),
        *("--tlscacert", str(directory / "ca.pem")),
        *("--tlscert", str(directory / "engine.pem"), "--tlskey", str(directory / "engine.key")),
    ]
    with _running("docker", "dockerd", options) as engine:
        yield (
            engine,
            {
                "DOCKER_HOST": f"tcp://127.0.0.1:{port}",
                "DOCKER_TLS_VERIFY": "1",
                "DOCKER_CERT_PATH": str(of_client),
                # They would be in place of the authority that the client of Docker was given.
                **dict.fromkeys(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), ""),
            },
        )


@pytest.fixture(scope="session")
def podman_engine() -> Iterator[Engine]:
    """Podman's service for all tests of this process."""
    with _running("podman", "podman") as engine:
        yield engine


@contextlib.contextmanager
def worker_settings(
    stack: Any, environment: Mapping[str, str], settings: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Set environment variables and settings of Dask in the workers of a stack, for a while.

    Parameters
    ----------
    stack
        That of ``girder_stack``.
    environment
        Variables such as ``DOCKER_HOST``. Processes of tasks that are forked ahead lack them.
    settings
        Settings such as ``girder.docker.engine``.
    """
    from distributed import Client

    def change(
        variables: Mapping[str, str | None], values: Mapping[str, Any]
    ) -> tuple[dict[str, str | None], dict[str, Any]]:
        """Set variables and settings of a process, and return those before."""
        import os

        import dask

        before = {name: os.environ.get(name) for name in variables}
        previous = {name: dask.config.get(name, None) for name in values}
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        dask.config.set(values)
        return before, previous

    with Client(stack.scheduler, set_as_default=False) as client:
        before = client.run(change, dict(environment), dict(settings or {}))
        try:
            yield
        finally:
            for address, values in before.items():
                client.run(change, *values, workers=[address])
