"""What of the files that a container has written becomes the result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from girder_dask.docker import image_names, outputs
from girder_dask.docker.progress_pipe import ProgressPipe
from girder_dask.errors import ContainerError
from tests.unit.docker.test_descriptions import DOCKER, PODMAN, described


def test_results_takes_no_pipe_and_no_link_out(tmp_path: Path) -> None:
    directory = tmp_path / "outputs"
    directory.mkdir()
    (tmp_path / "secret").write_text("of the host")
    os.mkfifo(directory / "pipe")
    (directory / "pointer").symlink_to("pipe")
    (directory / "stolen").symlink_to("../secret")
    (directory / "file").write_text("x")
    assert outputs.results(directory, "file") == str(directory / "file")
    for name in ("pipe", "pointer"):
        with pytest.raises(ContainerError, match=f"'{name}' into /outputs, which is neither"):
            outputs.results(directory, name)
    with pytest.raises(ContainerError, match="has written no 'stolen'"):
        outputs.results(directory, "stolen")


def test_remove_links_out_looks_into_directories_that_cannot_be_listed(tmp_path: Path) -> None:
    hidden = tmp_path / "outputs" / "hidden"
    hidden.mkdir(parents=True)
    (hidden / "stolen").symlink_to("/etc/passwd")
    hidden.chmod(0o111)
    hidden.parent.chmod(0o111)
    assert outputs.remove_links_out(hidden.parent) == ["hidden/stolen"]
    assert hidden.stat().st_mode & 0o700 == hidden.parent.stat().st_mode & 0o700 == 0o700
    assert list(hidden.iterdir()) == []


def test_names_of_files_are_parts_of_one_line_of_utf8(tmp_path: Path) -> None:
    for name in (b"\xff", b"a\nJob succeeded", *(b"%03d" % n for n in range(40))):
        (tmp_path / os.fsdecode(name)).write_text("")
    with pytest.raises(ContainerError, match=r"000, 001, .* and 22 more\.$") as error:
        outputs.results(tmp_path, "missing")
    str(error.value).encode()
    lines = list(outputs.left_out([os.fsdecode(b"\xff"), "a\nb", *("c" * 900 for _ in range(40))]))
    assert len(lines) == 21
    assert lines[-1].startswith("… and 22 more are left out")
    assert all("\n" not in line and len(line.encode()) < 300 for line in lines)


def test_progress_pipe_goes_on_when_the_container_has_read_it(tmp_path: Path) -> None:
    updates: list[Any] = []
    with ProgressPipe(tmp_path / "progress", lambda **fields: updates.append(fields)) as pipe:
        assert pipe.read()
        pipe.path.write_text('0.5\n{"total": 1e999, "message": "\\ud800"}\n[1]\nnan\n')
        assert pipe.read()
    assert len(updates) == 2


def test_a_call_does_not_choose_gpus_by_a_variable() -> None:
    wanted = {"NVIDIA_VISIBLE_DEVICES": "all", "HOME": "/data"}
    found = described(DOCKER, env=wanted)["Env"]
    assert found == ["HOME=/data", "NVIDIA_VISIBLE_DEVICES=void"]
    found = described(PODMAN, env=wanted, gpus=("3",))["env"]
    assert found == {"HOME": "/data", "NVIDIA_VISIBLE_DEVICES": "3"}


def test_a_word_with_capitals_is_a_registry() -> None:
    assert not image_names.matches("EVIL/library/tool", ["docker.io/**"])
    assert image_names.full_name("EVIL/tool") == "EVIL/tool"
