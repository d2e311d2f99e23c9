"""``girder-dask standalone`` as a process, as people start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import girder_client
import psutil
import pymongo
import pytest

from girder_dask.jobs import JobStatus
from girder_dask.standalone import marked_processes
from tests.support.storage import Storage

# Some start two stacks, which takes a minute each on a busy machine.
pytestmark = pytest.mark.timeout(400)

PARTS = ["mongod", "redis", "girder", "scheduler", "worker-0"]


class Launch:
    """A running ``girder-dask standalone``."""

    def __init__(self, directory: Path, *args: str, **env: str) -> None:
        self.directory = directory
        self.output_file = Path(tempfile.mkstemp(".out")[1])
        command = [sys.executable, "-m", "girder_dask.cli", "standalone", "--workers", "1"]
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--dir", str(directory), *args],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def wait_until_ready(self) -> dict[str, Any]:
        """Return stack.json once the launcher says that it is done."""
        self.wait_for_output("Ctrl-C stops everything")
        return json.loads((self.directory / "stack.json").read_text())

    def wait_for_output(self, pattern: str, timeout: float = 120) -> str:
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.output, re.DOTALL)):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return match.group()

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


@contextmanager
def launched(directory: Path, *args: str, **env: str) -> Iterator[Launch]:
    launch = Launch(directory, *args, **env)
    try:
        yield launch
    finally:
        if launch.process.poll() is None:
            launch.end(signal.SIGTERM)
        launch.output_file.unlink()


def leftovers(directory: Path) -> list[psutil.Process]:
    return marked_processes.marked(str(directory))


def wait_for_end(directory: Path, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while left := leftovers(directory):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def login(stack: dict[str, Any]) -> girder_client.GirderClient:
    client = girder_client.GirderClient(apiUrl=stack["api"])
    client.authenticate(stack["login"], stack["password"])
    return client


def assert_no_secret(launch: Launch, stack: dict[str, Any]) -> None:
    logs = "".join(log.read_text() for log in (launch.directory / "logs").iterdir())
    for secret in (
        stack["password"],
        stack["api_key"],
        (launch.directory / "credential").read_text().strip(),
    ):
        assert secret not in launch.output
        assert secret not in logs


def test_whole_life(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    with launched(directory) as launch:
        stack = launch.wait_until_ready()
        assert (directory / "stack.json").stat().st_mode & 0o777 == 0o600
        assert (directory / "credential").stat().st_mode & 0o777 == 0o600
        assert list(stack["pids"]) == PARTS
        assert all(psutil.pid_exists(pid) for pid in stack["pids"].values())
        for part in PARTS:
            assert f"{part}: ready in" in launch.output
        assert stack["girder"] in launch.output
        assert_no_secret(launch, stack)

        with_key = girder_client.GirderClient(apiUrl=stack["api"])
        with_key.authenticate(apiKey=stack["api_key"])
        me = with_key.get("user/me")
        assert me["admin"]
        assert me["login"] == stack["login"]
        folder = with_key.createFolder(me["_id"], "kept", parentType="user")
        file = directory.parent / "data.txt"
        file.write_text("kept, too")
        uploaded = with_key.uploadFileToFolder(folder["_id"], str(file))
        with pymongo.MongoClient(stack["mongo"]) as mongo:
            assert mongo.get_default_database()["user"].count_documents({}) == 1

        second = subprocess.run(
            launch.process.args, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert second.returncode == 1
        assert f"already runs in {directory} (process {launch.process.pid})" in second.stderr
        assert "Traceback" not in second.stderr

        assert launch.end(signal.SIGINT) == 0
        assert leftovers(directory) == []
        assert not any(psutil.pid_exists(pid) for pid in stack["pids"].values())
        assert json.loads((directory / "stack.json").read_text())["pids"] == {}
        order = re.findall(r"(\S+): stopping", launch.output)
        assert order == PARTS[::-1]

    with launched(directory) as launch:
        again = launch.wait_until_ready()
        assert {**again, "pids": {}} == {**stack, "pids": {}}
        client = login(again)
        assert client.getFolder(folder["_id"])["name"] == "kept"
        target = tmp_path / "downloaded"
        client.downloadFile(uploaded["_id"], str(target))
        assert target.read_text() == "kept, too"
        assert len(client.get("assetstore")) == 1
        assert len(client.get("api_key")) == 2
        assert launch.end(signal.SIGTERM) == 0
    assert leftovers(directory) == []


def test_services_of_the_environment_are_used(tmp_path: Path) -> None:
    with Storage(tmp_path / "services") as services:
        env = services.env()
        mongo = env["GIRDER_MONGO_URI"]
        with launched(tmp_path / "stack", **env) as launch:
            stack = launch.wait_until_ready()
            assert stack["mongo"] == mongo
            assert stack["redis"] == env["GIRDER_NOTIFICATION_REDIS_URL"]
            assert list(stack["pids"]) == PARTS[2:]
            assert login(stack).get("user/me")["admin"]
        # A directory that does not know the administrator of that database.
        with launched(tmp_path / "stranger", GIRDER_MONGO_URI=mongo) as stranger:
            assert stranger.process.wait(120) == 1
            assert "already has users" in stranger.output


def test_without_a_redis_it_says_so_and_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from girder_dask.standalone import programs\n"
        "programs.redis_server = lambda *_: None\n"  # as where none is installed
    )
    with launched(tmp_path / "stack", PYTHONPATH=str(tmp_path)) as launch:
        stack = launch.wait_until_ready()
        assert "pages do not update by themselves" in launch.output
        assert "apt-get install redis-server" in launch.output
        assert list(stack["pids"]) == [name for name in PARTS if name != "redis"]
        client = login(stack)
        job = client.post("my_plugin/task/slow", parameters={"args": json.dumps([0.1, 1])})
        deadline = time.monotonic() + 60
        while client.get(f"job/{job['id']}")["status"] != JobStatus.SUCCESS:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_killed_launcher_leaves_no_process(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    with launched(directory) as launch:
        launch.wait_until_ready()
        launch.end(signal.SIGKILL)
    # A start right after waits for the rest of the one before.
    with launched(directory) as launch:
        stack = launch.wait_until_ready()
        running = {p.pid for p in leftovers(directory)}
        assert set(stack["pids"].values()) <= running
        launch.end(signal.SIGKILL)
    wait_for_end(directory)


def test_signals_while_stopping_change_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    with launched(directory) as launch:
        launch.wait_until_ready()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            launch.process.send_signal(number)
        launch.wait_for_output("worker-0: stopping")
        assert launch.end(signal.SIGTERM) == 0
    assert "Shutting down" in (directory / "logs" / "mongod.log").read_text()
    assert leftovers(directory) == []


def test_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    with launched(directory) as launch:
        stack = launch.wait_until_ready()
        # A worker that does not stop when it is asked to.
        os.kill(stack["pids"]["worker-0"], signal.SIGSTOP)
        launch.process.send_signal(signal.SIGINT)
        launch.wait_for_output("worker-0: stopping")
        time.sleep(1.1)  # the launcher takes an earlier one for an echo of the first
        assert launch.end(signal.SIGINT) == 130
        assert "scheduler: stopping" not in launch.output
    assert leftovers(directory) == []


def test_ctrl_c_while_starting(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    with launched(directory) as launch:
        launch.wait_for_output("girder: starting")
        assert launch.end(signal.SIGINT) == 130
        assert "Traceback" not in launch.output
    assert leftovers(directory) == []


def test_part_that_does_not_start(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    with launched(directory, DASK_DISTRIBUTED__SCHEDULER__PRELOAD="['no_such_module']") as launch:
        assert launch.process.wait(120) == 1
        # It listens before it looks for the module.
        said = r"scheduler (ended while starting|has ended) \(exit code 1\)"
        assert re.search(said, launch.output), launch.output
        assert "No module named 'no_such_module'" in launch.output
        assert "launcher.py" not in launch.output
    assert leftovers(directory) == []
    assert not (directory / "stack.json").exists()


def test_database_that_does_not_answer(tmp_path: Path) -> None:
    with launched(tmp_path / "stack", GIRDER_MONGO_URI="mongodb://127.0.0.1:1/girder") as launch:
        assert launch.process.wait(120) == 1
        assert "that GIRDER_MONGO_URI names does not answer" in launch.output
        assert "Traceback" not in launch.output


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with launched(tmp_path / "stack", "--girder-port", str(port)) as launch:
            assert launch.process.wait(120) == 1
            assert f"Port {port} of 127.0.0.1, wanted for girder, is in use" in launch.output


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with launched(tmp_path / "file" / "stack") as launch:
        assert launch.process.wait(120) == 1
        assert "Not a directory" in launch.output


@pytest.mark.parametrize("option", [["--workers", "0"], ["--workers", "3"]])
def test_number_of_workers(tmp_path: Path, option: list[str]) -> None:
    with launched(tmp_path / "stack", *option) as launch:
        stack = launch.wait_until_ready()
        workers = [name for name in stack["pids"] if name.startswith("worker-")]
        assert workers == [f"worker-{n}" for n in range(int(option[1]))]
