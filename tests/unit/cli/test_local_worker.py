"""``girder-dask local-worker``."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from girder_dask.cli import main
from girder_dask.cli.local_worker import _MODULES, missing_requirements


def test_local_worker_becomes_a_dask_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setenv("GIRDER_MONGO_URI", "mongodb://db/girder")
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    with pytest.raises(SystemExit) as ended:
        main.main(["local-worker", "tcp://dask:8786", "--threads", "3", "--", "--name", "local"])
    assert ended.value.code == 0
    ((program, command),) = started
    assert program == command[0] == sys.executable
    assert command[1:] == [
        *("-m", "dask", "worker", "tcp://dask:8786", "--nthreads", "3"),
        *("--resources", "queue:local=3", "--name", "local"),
    ]


def test_local_worker_says_what_its_environment_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GIRDER_MONGO_URI", raising=False)
    with pytest.raises(SystemExit) as ended:
        main.main(["local-worker", "tcp://dask:8786"])
    assert ended.value.code == 1
    assert "this environment lacks the variable GIRDER_MONGO_URI" in capsys.readouterr().err


def test_missing_requirements_names_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_MODULES, "no_such_module", "no-such-package")
    assert missing_requirements({"GIRDER_MONGO_URI": "x"}) == ["the package no-such-package"]
