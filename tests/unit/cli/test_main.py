"""The command line, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import girder_dask


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("girder-dask")), *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


def test_main_prints_the_version() -> None:
    assert run("--version").stdout == f"girder-dask, version {girder_dask.__version__}\n"


def test_main_help_names_every_command() -> None:
    shown = run("-h").stdout
    for command in ("standalone", "credential", "demo", "doctor", "tasks"):
        assert f"\n  {command} " in shown


def test_tasks_lists_the_tasks_of_installed_packages() -> None:
    shown = run("tasks")
    assert shown.returncode == 0
    assert "my_worker_tasks:my_task\n" in shown.stdout


def test_main_prints_errors_without_a_traceback() -> None:
    shown = run("credential", "--api-url", "http://127.0.0.1:1/api/v1", GIRDER_API_KEY="x")
    assert shown.returncode == 1
    assert shown.stderr.startswith("Error: Girder cannot be reached")
    assert "Traceback" not in shown.stderr


def test_main_explains_wrong_usage() -> None:
    shown = run("standalone")
    assert shown.returncode == 2
    assert "--dir" in shown.stderr


@pytest.mark.parametrize("given", [["--api-key", "5f3c5f3c"], ["--api-key=5f3c5f3c"]])
def test_credential_refuses_a_key_on_the_command_line_and_does_not_show_it(
    given: list[str],
) -> None:
    shown = run("credential", "--api-url", "http://127.0.0.1:1/api/v1", *given)
    assert shown.returncode == 2
    assert "GIRDER_API_KEY" in shown.stderr
    assert "5f3c5f3c" not in shown.stdout + shown.stderr
    assert "GIRDER_API_KEY" in run("credential", "--help").stdout


def test_credential_asks_for_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from girder_dask import cli, credential
    from girder_dask.errors import GirderError

    keys = []

    def connect(_url: str, *, api_key: str | None, **_options: object) -> None:
        keys.append(api_key)
        raise GirderError("enough")

    monkeypatch.delenv("GIRDER_API_KEY", raising=False)
    monkeypatch.setattr(credential, "connect", connect)
    arguments = ["credential", "--api-url", "http://girder.test/api/v1", "--api-key"]
    shown = CliRunner().invoke(cli.main, arguments, input="5f3c5f3c\n")
    assert keys == ["5f3c5f3c"]
    assert "5f3c5f3c" not in shown.output
