"""A site that ``girder-dask init`` has written, started with the commands of its README."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import girder_client
import yaml

from girder_dask.jobs import FINAL
from girder_dask.testing import remote

__all__ = ["PASSWORD", "Site", "blocks", "register", "run_job"]

#: The password of the administrator.
PASSWORD = "of the recipe"
_SECRET = "of the tests"


def blocks(directory: Path, language: str) -> dict[str, list[str]]:
    """Return the code blocks of a site's README by the first word of their headings."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", (directory / "README.md").read_text(), flags=re.MULTILINE):
        heading = re.match(r"\S+", section)
        assert heading
        code = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        found[heading.group()] = code
    return found


class Site:
    """The files of a site that ``girder-dask init`` writes, and the processes started from them.

    Parameters
    ----------
    directory
        Where to write the files, and where they are for each role.
    options
        The options of the command, besides its directories.
    settings
        Settings of Girder that differ from those in the files.
    tls
        Whether Dask's processes use TLS.
    """

    def __init__(
        self,
        directory: Path,
        options: dict[str, str],
        settings: dict[str, str],
        *,
        tls: bool = True,
    ) -> None:
        # The account of the tests is that of all roles.
        state = directory.with_name("state")
        (state / "worker").mkdir(mode=0o700, parents=True)
        options = {"--prefix": str(directory), "--state": str(state), **options}
        self.directory = directory
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIRDER_DASK_TESTING_SECRET": _SECRET,
        }
        for name in [n for n in self.env if n.startswith(("GIRDER_MONGO", "GIRDER_NOTIF"))]:
            del self.env[name]
        given = [text for option in options.items() for text in option]
        command = ["girder-dask", "init", str(directory), "--tls" if tls else "--no-tls", *given]
        subprocess.run(command, env=self.env, check=True, capture_output=True)
        file = directory / "girder" / "girder.env"
        text = file.read_text()
        for name, value in settings.items():
            text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
            assert count == 1, name
        file.write_text(text)
        self.shell = blocks(directory, "sh")

    @property
    def api(self) -> str:
        """Girder's REST API, as the scheduler's configuration has it."""
        config = yaml.safe_load((self.directory / "scheduler" / "dask.yaml").read_text())
        return str(config["girder"]["api-url"])

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return a process by the name that it was started with."""
        return self._started[name]

    def run(
        self, block: str, *, within: Sequence[str] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a block to its end."""
        return subprocess.run(
            [*within, "sh", "-ec", block],
            cwd=self.directory,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    def start(
        self, block: str, name: str, ready: Callable[[], bool], *, within: Sequence[str] = ()
    ) -> None:
        """Start a block that goes on, and wait until it does its work.

        ``within`` is a command that runs another, such as ``ip netns exec NAME``.
        """
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*within, "sh", "-ec", block],
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started[name] = process
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        for process in reversed(self._started.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def register(api: str, assetstore: Path) -> Any:
    """Do what the recipe says to do on Girder's pages."""
    client = girder_client.GirderClient(apiUrl=api)
    user = {"login": "admin", "password": PASSWORD, "email": "admin@example.org"}
    client.post("user", parameters={**user, "firstName": "A", "lastName": "B"})
    client.authenticate(user["login"], user["password"])
    client.post("assetstore", parameters={"name": "files", "type": 0, "root": str(assetstore)})
    return client


def run_job(client: Any, start: Callable[..., str], *args: Any) -> dict[str, Any]:
    """Call a function in Girder that starts a job and returns its id, and wait for the job."""
    call = base64.b64encode(remote.pack(start, args, {})).decode()
    answer = client.post("dask/testing/call", json={"secret": _SECRET, "call": call})
    job_id = remote.unpack(base64.b64decode(answer["outcome"]))
    deadline = time.monotonic() + 120
    while (job := client.get(f"job/{job_id}"))["status"] not in FINAL:
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return dict(job)
