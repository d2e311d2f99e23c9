"""Which packages and tasks are found, by the new entry points and by the old ones."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from girder_dask import entrypoint
from girder_dask.entrypoint import discover
from girder_dask.errors import TaskNotFoundError
from girder_dask.tasks import discovery


def install(path: Path, name: str, *, requires: str, group: str, value: str) -> None:
    """Write a distribution as an installer leaves it."""
    info = path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {requires}\n"
    )
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


@pytest.fixture
def ported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the old entry point alone, and one that was not ported."""
    (tmp_path / "old_style.py").write_text(
        "from girder_dask import app\n"
        "from girder_dask.describing import argument, types\n"
        "from girder_dask.entrypoint import GirderWorkerPluginABC\n"
        "class Plugin(GirderWorkerPluginABC):\n"
        "    def task_imports(self):\n"
        "        return ['old_style']\n"
        "@app.task\n"
        "@argument('n', types.Integer)\n"
        "def double(n):\n"
        "    return 2 * n\n"
        "@argument('n', types.Integer)\n"
        "def described(n):\n"
        "    return n\n"
        "@app.task\n"
        "def bare():\n"
        "    return None\n"
    )
    for name, requires, value in (
        ("old_style", "girder-dask[girder]>=0.1", "old_style:Plugin"),
        ("not_ported", "girder-worker", "module_that_needs_girder_worker:Plugin"),
    ):
        group = discovery.WORKER_ENTRY_POINT_GROUP
        install(tmp_path, name, requires=requires, group=group, value=value)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "old_style", raising=False)
    return tmp_path


def test_a_ported_package_with_the_old_entry_point_is_found(ported: Path) -> None:
    names = entrypoint.get_extensions()
    assert "old_style" in names
    assert "old_style" not in sys.modules
    assert "old_style:double" in discover()


def test_a_package_that_is_not_ported_is_left_alone(ported: Path) -> None:
    points = importlib.metadata.entry_points(group=discovery.WORKER_ENTRY_POINT_GROUP)
    assert "not_ported" in points.names
    assert "not_ported" not in entrypoint.get_extensions()
    discover()  # imports nothing of it


def test_tasks_and_described_functions_of_a_package(ported: Path) -> None:
    found = entrypoint.get_extension_tasks("old_style")
    assert set(found) == {"old_style.double", "old_style.described", "old_style.bare"}
    assert found["old_style.double"].describe()["inputs"][0]["name"] == "n"  # type: ignore[attr-defined]
    tasks = entrypoint.get_extension_tasks("old_style", celery_only=True)
    assert set(tasks) == {"old_style.double", "old_style.bare"}


def test_the_new_entry_point_names_the_module() -> None:
    found = entrypoint.get_extension_tasks("ported_tasks")
    assert "ported_tasks.tasks.scale" in found
    assert found == entrypoint.get_module_tasks("ported_tasks.tasks")
    assert "ported_tasks.tasks" in discovery.modules_of_tasks()


def test_each_package_is_found_once() -> None:
    """ported_tasks has both entry points."""
    assert entrypoint.get_extensions().count("ported_tasks") == 1
    assert discovery.modules_of_tasks().count("ported_tasks.tasks") == 1


def test_an_unknown_package_is_an_error_that_says_which_there_are() -> None:
    with pytest.raises(TaskNotFoundError, match=r"'nothing' in the group .*ported_tasks"):
        entrypoint.get_extension_tasks("nothing")
