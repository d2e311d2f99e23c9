"""The recipe in ``deploy/``, run as it stands there."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import girder_client
import pytest
import yaml

from girder_dask import standalone
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.standalone import checks, ports
from girder_dask.testing import remote

if TYPE_CHECKING:
    from girder_dask.testing.stack import TestStack

DEPLOY = Path(__file__).parents[2] / "deploy"


def blocks(language: str) -> dict[str, list[str]]:
    """Return the code blocks of the recipe by the first word of their headings."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", (DEPLOY / "README.md").read_text(), flags=re.MULTILINE):
        heading = re.match(r"(Terminal \d|\S+)", section)
        assert heading
        code = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        found[heading.group()] = code
    return found


class Site:
    """A copy of ``deploy/``, adapted to this machine, and the processes started from it."""

    def __init__(self, directory: Path, values: dict[str, str]) -> None:
        self.directory = directory
        self.values = values
        self.started: list[subprocess.Popen[bytes]] = []
        shutil.copytree(DEPLOY, directory)
        text = (directory / "site.env").read_text()
        for name, value in values.items():
            text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
            assert count == 1, name
        (directory / "site.env").write_text(text)
        (self.read_site,) = blocks("sh")["Before"]
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIRDER_DASK_TESTING_SECRET": "of the recipe",
        }
        for name in [n for n in self.env if n.startswith(("GIRDER_MONGO", "GIRDER_NOTIF"))]:
            del self.env[name]

    def command(self, block: str) -> list[str]:
        return ["sh", "-ec", f"{self.read_site}\n{block}"]

    def run(self, block: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a block to its end."""
        return subprocess.run(
            self.command(block),
            cwd=self.directory,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def start(self, block: str, name: str, ready: Callable[[], bool]) -> None:
        """Start a block that goes on, and wait until it does its work."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(block),
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        for process in reversed(self.started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def site(girder_stack: TestStack, tmp_path: Path) -> Iterator[Site]:
    girder, scheduler, dashboard = ports.choose(None), ports.choose(None), ports.choose(None)
    api = f"http://127.0.0.1:{girder}/api/v1"
    site = Site(
        tmp_path / "deploy",
        {
            "GIRDER_HOST": "127.0.0.1",
            "GIRDER_PORT": str(girder),
            "GIRDER_MONGO_URI": girder_stack.mongo.rpartition("/")[0] + "/recipe",
            "GIRDER_NOTIFICATION_REDIS_URL": girder_stack.redis,
            "GIRDER_SETTING_DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{scheduler}",
            "GIRDER_SETTING_DASK_API_URL": api,
            "SCHEDULER_HOST": "127.0.0.1",
            "SCHEDULER_PORT": str(scheduler),
            "DASHBOARD_ADDRESS": f"127.0.0.1:{dashboard}",
            "DASK_GIRDER__API_URL": api,
            "SCHEDULER": f"tcp://127.0.0.1:{scheduler}",
            "WORKERS": "1",
            "WORKER_DIRECTORY": str(tmp_path / "workers"),
        },
    )
    try:
        yield site
    finally:
        site.close()


def register(api: str, assetstore: Path) -> Any:
    """Do what the recipe says to do on Girder's pages."""
    client = girder_client.GirderClient(apiUrl=api)
    user = {"login": "admin", "password": "of the recipe", "email": "admin@example.org"}
    client.post("user", parameters={**user, "firstName": "A", "lastName": "B"})
    client.authenticate(user["login"], user["password"])
    client.post("assetstore", parameters={"name": "files", "type": 0, "root": str(assetstore)})
    return client


def start_job() -> str:
    from my_worker_tasks import my_task

    return str(my_task.delay("recipe").id)


def run_job(client: Any) -> dict[str, Any]:
    call = base64.b64encode(remote.pack(start_job, (), {})).decode()
    answer = client.post("dask/testing/call", json={"secret": "of the recipe", "call": call})
    job_id = remote.unpack(base64.b64decode(answer["outcome"]))
    deadline = time.monotonic() + 30
    while (job := client.get(f"job/{job_id}"))["status"] not in FINAL:
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return dict(job)


def test_recipe(site: Site, tmp_path: Path) -> None:
    shell = blocks("sh")
    api = site.values["DASK_GIRDER__API_URL"]
    dashboard = f"http://{site.values['DASHBOARD_ADDRESS']}"

    (serve,) = shell["Terminal 1"]
    site.start(serve, "girder", lambda: checks.girder_answers(api))
    client = register(api, tmp_path / "assetstore")

    make_credential, scheduler = shell["Terminal 2"]
    made = site.run(make_credential, GIRDER_PASSWORD="of the recipe")
    assert made.returncode == 0, made.stderr
    credential = site.directory / "scheduler.credential"
    assert stat.S_IMODE(credential.stat().st_mode) == 0o600
    site.start(scheduler, "scheduler", lambda: checks.registered_workers(dashboard) is not None)

    (worker,) = shell["Terminal 3"]
    site.start(worker, "worker", lambda: checks.registered_workers(dashboard) == 1)

    job = run_job(client)
    assert job["status"] == JobStatus.SUCCESS
    assert "arg1 is 'recipe'" in "".join(job["log"])

    (notebook,) = blocks("python")["Terminal 4"]
    (site.directory / "notebook.py").write_text(notebook)
    shown = site.run("python notebook.py")
    assert shown.stdout.strip() == "6", shown.stderr

    (doctor,) = shell["Terminal 4"]
    found = site.run(doctor)
    assert found.returncode == 0, found.stdout + found.stderr


def test_stack_uses_the_very_file() -> None:
    packaged = Path(standalone.__file__).with_name("girder_dask.yaml")
    assert (DEPLOY / "girder_dask.yaml").read_text() == packaged.read_text()
    config = yaml.safe_load(packaged.read_text())
    assert config["distributed"]["scheduler"]["preload"] == ["girder_dask.scheduler_hooks"]


def test_service_asks_no_process_of_a_task_to_end() -> None:
    (unit,) = blocks("ini")["systemd"]
    assert re.findall(r"^KillMode=(.*)$", unit, re.MULTILINE) == ["mixed"]


def test_service_runs_a_command_of_the_recipe() -> None:
    (unit,) = blocks("ini")["systemd"]
    (command,) = re.findall(r"^ExecStart=/opt/girder_dask/bin/(.*)$", unit, re.MULTILINE)
    (worker,) = blocks("sh")["Terminal 3"]
    assert command == re.sub(r'\\\n +|"|\n', "", worker.replace('"$', "${").replace('"', "}"))
