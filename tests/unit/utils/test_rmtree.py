"""The removal of directories that resist it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from girder_dask.utils.rmtree import rmtree
from tests.support.deadline import SECONDS, until

# Root may do anything, so it becomes somebody else first.
_AS_SOMEBODY = """
import os, sys
from pathlib import Path
root = Path(sys.argv[1])
if os.getuid() == 0:
    os.chown(root, 65534, 65534)
from girder_dask.utils.rmtree import rmtree
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for mode in (0, 0o555):
    for locked in ("", "a", "a/b"):
        path = root / "job"
        (path / "a/b").mkdir(parents=True)
        (path / "a/b/file").write_text("x")
        os.chmod(path / locked, mode)
        try:
            (path / "a/b/other").write_text("x")
        except PermissionError:
            pass
        else:
            assert (mode, locked) == (0o555, "") or (mode, locked) == (0o555, "a")
        rmtree(path)
        assert list(root.iterdir()) == [], (mode, locked)
print("all gone")
"""


def test_rmtree_removes_whatever_its_mode() -> None:
    with tempfile.TemporaryDirectory() as root:  # those of pytest are closed to others
        command = [sys.executable, "-c", _AS_SOMEBODY, root]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all gone\n"), done.stderr


def test_rmtree_shuts_out_writers(tmp_path: Path) -> None:
    path = tmp_path / "job"
    (path / "t").mkdir(parents=True)
    written = [0]

    def write() -> None:
        with contextlib.suppress(OSError):
            while True:
                (path / "t" / str(written[0])).write_text("x")
                written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: written[0] > 100)
    rmtree(path)
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def makes_anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Have a directory made anew each time that it is removed, so many times."""

    def begin(path: Path, times: int) -> None:
        left = [times]
        rmtree = shutil.rmtree

        def removed(directory: Path) -> None:
            rmtree(directory)
            if left[0]:
                left[0] -= 1
                (path / "in it").mkdir(parents=True)

        monkeypatch.setattr(shutil, "rmtree", removed)
        (path / "in it").mkdir(parents=True)

    return begin


def test_rmtree_removes_what_is_created_meanwhile(tmp_path: Path, makes_anew: Any) -> None:
    makes_anew(tmp_path / "job", 3)
    rmtree(tmp_path / "job")
    assert list(tmp_path.iterdir()) == []


def test_rmtree_raises_for_what_is_left(tmp_path: Path, makes_anew: Any) -> None:
    makes_anew(tmp_path / "job", 1000)
    with pytest.raises(OSError, match="is created again and again"):
        rmtree(tmp_path / "job")


def test_rmtree_removes_a_link_without_following_it(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "job").symlink_to(tmp_path / "other")
    rmtree(tmp_path / "job")
    assert [p.name for p in tmp_path.rglob("*")] == ["other", "file"]


def test_rmtree_accepts_a_missing_directory(tmp_path: Path) -> None:
    rmtree(tmp_path / "job")


def test_rmtree_removes_directories_deeper_than_python_recurses(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(sys.getrecursionlimit() + 100):
        os.mkdir("d" * 20, mode=0o500, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    (tmp_path / "kept").mkdir()
    (path / "link").symlink_to(tmp_path / "kept")
    rmtree(path)
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
