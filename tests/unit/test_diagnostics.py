"""What a process knows of its environment."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from girder_dask import diagnostics
from tests.support.local_girder import serving


def test_versions_are_those_that_are_installed() -> None:
    found = diagnostics.versions()
    assert found["python"] == platform.python_version()
    assert set(found) == {"python", *diagnostics.COMPARED_DISTRIBUTIONS}
    assert all(found[name] == metadata.version(name) for name in diagnostics.COMPARED_DISTRIBUTIONS)


def test_versions_name_a_missing_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "COMPARED_DISTRIBUTIONS", ("no-such-distribution",))
    assert diagnostics.versions()["no-such-distribution"] == "not installed"


def test_versions_are_those_of_the_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that was replaced while a process runs is not what runs there."""
    installed = metadata.version("cloudpickle")
    monkeypatch.setattr(cloudpickle, "__version__", "0.9")
    assert diagnostics.versions()["cloudpickle"] == f"0.9, and {installed} after a restart"


def test_disk_space_of_a_directory(tmp_path: Path) -> None:
    (disk,) = diagnostics.disk_space(str(tmp_path))
    assert disk["path"] == str(tmp_path)
    assert 0 < disk["free"] <= disk["total"]
    assert diagnostics.disk_space(str(tmp_path / "missing")) == []


def test_find_api_takes_the_address_of_the_site() -> None:
    with serving() as girder:
        girder.answers["GET system/version"] = (200, {"release": "5.0"})
        site = girder.url.removesuffix("/api/v1")
        for given in (site, site + "/", girder.url, girder.url + "/"):
            assert diagnostics.find_api(given) == girder.url
    assert diagnostics.find_api(site) == girder.url, "also if nothing answers"


def package(path: Path, name: str, code: str) -> None:
    (path / f"{name}.py").write_text(code)
    info = path / f"{name}-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text(f"[girder_dask.tasks]\nany = {name}\n")


def tasks_with(path: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, girder_dask.diagnostics as f; print(json.dumps(f.tasks()))",
        ],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found == sorted(found, key=lambda task: task["module"])
    return {task["module"]: task for task in found}


def test_tasks_lists_each_module_with_its_error(tmp_path: Path) -> None:
    package(tmp_path, "good_tasks", "")
    package(tmp_path, "bad_tasks", "import no_such_module\n")
    package(tmp_path, "worse_tasks", "raise RuntimeError('no camera')\n")
    found = tasks_with(tmp_path)
    assert found["good_tasks"] == {
        "module": "good_tasks",
        "package": "good_tasks 3.1",
        "error": None,
    }
    assert found["bad_tasks"]["error"] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert found["worse_tasks"]["error"] == "RuntimeError: no camera"


def test_tasks_survives_a_module_that_exits(tmp_path: Path) -> None:
    package(tmp_path, "exit_tasks", "import sys; sys.exit(3)\n")
    assert "SystemExit" in tasks_with(tmp_path)["exit_tasks"]["error"]


def test_describe_process_says_whether_girder_answers() -> None:
    with serving() as girder:
        girder.answers["GET dask/ping"] = (200, {"plugin": "0.1"})
        assert diagnostics.describe_process(girder.url)["girder_error"] is None
        girder.answers["GET dask/ping"] = (404, {"message": "No matching route"})
        assert "No matching route" in diagnostics.describe_process(girder.url)["girder_error"]
        url = girder.url
    assert "does not answer" in diagnostics.describe_process(url)["girder_error"]


def test_describe_process_does_not_ask_girder_without_an_address() -> None:
    found = diagnostics.describe_process(None)
    assert (found["api_url"], found["girder_error"]) == (None, None)
    assert found["executable"] == sys.executable
    assert found["hostname"]
    json.dumps(found)
