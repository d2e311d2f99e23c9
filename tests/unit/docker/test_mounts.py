"""Paths among the arguments of containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from girder_dask.docker.mounts import ArgumentResolver, being_written, make_readable
from girder_dask.docker.plan import Mount
from girder_dask.errors import ContainerError


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A directory with the working directory of a job, and that of its inputs."""
    for name in ("work", "job-7-inputs-a1"):
        (tmp_path / name).mkdir()
    (tmp_path / "job-7-inputs-a1" / "x.png").write_text("x")
    (tmp_path / "work" / "made.txt").write_text("made")
    (tmp_path / "secret").write_text("secret")
    return tmp_path


def resolver(job: Path, *volumes: str) -> ArgumentResolver:
    return ArgumentResolver(f"{job}/job-7-inputs-", [f"{job}/work", *volumes])


def test_an_input_is_bound_once_and_read_only(job: Path) -> None:
    path = f"{job}/job-7-inputs-a1/x.png"
    found = resolver(job)
    assert found.arguments(["-i", path, ["--mask=", path], 3, 0.5]) == [
        *("-i", "/inputs/1/x.png", "--mask=/inputs/1/x.png", "3", "0.5")
    ]
    assert found.variables({"IN": path}) == {"IN": "/inputs/1/x.png"}
    assert found.mounts == [Mount(path, "/inputs/1/x.png", read_only=True)]


def test_files_of_the_job_and_of_allowed_directories_are_bound(job: Path) -> None:
    (job / "atlas").mkdir()
    (job / "atlas" / "a.nii").write_text("")
    found = resolver(job, f"{job}/atlas/")
    assert found.arguments(
        [Path(job, "work", "made.txt"), f"{job}/atlas/a.nii", f"{job}/work"]
    ) == [*("/inputs/1/made.txt", "/inputs/2/a.nii", "/inputs/3/work")]


@pytest.mark.parametrize(
    "text",
    ["{}/secret", "{}/work/../secret", "{}/work/link", "{}/work/up/secret", "{}/workshop", "/etc"],
)
def test_text_that_leads_elsewhere_is_only_text(job: Path, text: str) -> None:
    (job / "work" / "link").symlink_to(job / "secret")
    (job / "work" / "up").symlink_to(job)
    (job / "workshop").mkdir()
    found = resolver(job)
    assert found.arguments([text.format(job)]) == [text.format(job)]
    assert found.mounts == []


def test_a_path_that_leads_elsewhere_is_refused(job: Path) -> None:
    with pytest.raises(ContainerError, match=r"may not have.*girder\.docker\.volumes"):
        resolver(job).arguments([job / "secret"])


def test_a_link_among_the_inputs_leads_to_the_file_of_girder(job: Path) -> None:
    """No container writes there: it is a file that Girder lets the job use in place."""
    link = job / "job-7-inputs-a1" / "direct.png"
    link.symlink_to(job / "secret")
    found = resolver(job)
    assert found.arguments([str(link)]) == ["/inputs/1/direct.png"]
    assert found.mounts[0].source == str(job / "secret")


def test_what_another_container_writes_is_not_bound(job: Path) -> None:
    outputs = job / "work" / "outputs"
    outputs.mkdir()
    with being_written(outputs):
        for path in (outputs, job / "work"):
            with pytest.raises(ContainerError, match="being written by another container"):
                resolver(job).arguments([path])
    assert resolver(job).arguments([outputs]) == ["/inputs/1/outputs"]


def test_a_missing_file_is_named(job: Path) -> None:
    with pytest.raises(ContainerError, match=r"args\[1\] is .*gone.*no such file"):
        resolver(job).arguments(["x", f"{job}/work/gone"])


@pytest.mark.parametrize("value", [None, True, {"a": 1}, b"x", "a\0b", [["x"]], "x" * 200_000])
def test_an_argument_that_no_command_takes_is_refused(job: Path, value: Any) -> None:
    with pytest.raises(ContainerError, match=r"args\[0\]"):
        resolver(job).arguments([value])


def test_one_text_is_no_list_of_arguments(job: Path) -> None:
    with pytest.raises(ContainerError, match="Give a list"):
        resolver(job).arguments("--level 3")


@pytest.mark.parametrize("name", ["", "A=B", "1A", "A B", 3])
def test_a_name_that_no_variable_has_is_refused(job: Path, name: Any) -> None:
    with pytest.raises(ContainerError, match="not the name of a variable"):
        resolver(job).variables({name: "x"})


def test_make_readable_follows_no_link(job: Path) -> None:
    directory = job / "work"
    (directory / "link").symlink_to(job / "secret")
    for path in (job / "secret", directory / "made.txt"):
        path.chmod(0o600)
    directory.chmod(0o700)
    make_readable(str(directory))
    modes = [p.stat().st_mode & 0o777 for p in (directory, directory / "made.txt", job / "secret")]
    assert modes == [0o755, 0o644, 0o600]
