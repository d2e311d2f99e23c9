"""The command line, as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import girder_dask


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("girder-dask")), *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_version() -> None:
    assert run("--version").stdout == f"girder-dask, version {girder_dask.__version__}\n"


def test_help_names_every_command() -> None:
    shown = run("-h").stdout
    for command in ("standalone", "credential", "demo", "doctor", "tasks"):
        assert f"\n  {command} " in shown


def test_tasks_of_installed_packages() -> None:
    shown = run("tasks")
    assert shown.returncode == 0
    assert "my_worker_tasks:my_task\n" in shown.stdout


def test_errors_have_no_traceback() -> None:
    shown = run("credential", "--api-url", "http://127.0.0.1:1/api/v1", "--api-key", "x")
    assert shown.returncode == 1
    assert shown.stderr.startswith("Error: Girder cannot be reached")
    assert "Traceback" not in shown.stderr


def test_wrong_usage() -> None:
    shown = run("standalone")
    assert shown.returncode == 2
    assert "--dir" in shown.stderr
