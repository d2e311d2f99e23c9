"""Where the programs of the stack are found."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from girder_dask.errors import StackError
from girder_dask.standalone import ports, programs


@pytest.mark.parametrize(("command", "version"), [("mongod", "db version"), ("redis", "Redis")])
def test_programs_of_the_wheels_run(command: str, version: str, tmp_path: Path) -> None:
    commands = {"mongod": programs.mongod, "redis": programs.redis_server}
    program = commands[command](tmp_path, 1)[0]
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert version in shown.stdout


def test_program_is_looked_up_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "mongod"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs._program("mongod", "no-such-wheel", "bin/mongod") == str(program)


def test_missing_program_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"pip install 'girder_dask\[standalone\]'"):
        programs._program("mongod", "no-such-wheel", "bin/mongod")


def test_ports() -> None:
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
