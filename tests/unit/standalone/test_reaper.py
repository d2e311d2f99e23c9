"""The process that stops a stack whose launcher was killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from girder_dask.standalone.reaper import Reaper
from tests.support.deadline import until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "reaper.log"


def make_reaper(directory: Path, log: Path) -> Reaper:
    with (directory / "lock").open("w") as lock:
        return Reaper(str(directory), lock.fileno(), log)


def test_reaper_stops_what_is_registered_once_its_launcher_is_gone(
    tmp_path: Path, log: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    reaper = make_reaper(tmp_path, log)
    reaper.watch(sleeper.pid)
    reaper.close()
    until(lambda: sleeper.poll() is not None)
    assert log.read_text() == "", "nothing was worth a warning"


def test_reaper_spares_what_was_unregistered(
    tmp_path: Path, log: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    reaper = make_reaper(tmp_path, log)
    reaper.watch(sleeper.pid)
    reaper.forget(sleeper.pid)
    reaper.close()
    assert sleeper.poll() is None
    assert log.read_text() == ""
