"""``scripts/release``: what keeps a commit from being released, in repositories made for it."""

from __future__ import annotations

import datetime
import importlib.machinery
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "release"
TODAY = datetime.datetime.now(datetime.timezone.utc).date()
FILES = ["girder_dask/_version.py", "girder_dask/girder_dask.yaml"]


class Repository:
    """A repository with a package of one module, its changelog, and the script."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "scripts").mkdir(parents=True)
        (path / "girder_dask").mkdir()
        shutil.copy(SCRIPT, path / "scripts")
        (path / "girder_dask" / "girder_dask.yaml").touch()
        self.git("init", "--quiet")
        self.git("config", "user.email", "releaser@example.org")
        self.git("config", "user.name", "Releaser")
        self.commit("1.2.3", f"## [1.2.3] - {TODAY}")

    def git(self, *arguments: str) -> None:
        """Run git."""
        subprocess.run(["git", *arguments], cwd=self.path, check=True)

    def commit(self, version: str, heading: str) -> None:
        """Commit a version, and the first heading of the changelog."""
        (self.path / "girder_dask" / "_version.py").write_text(f'__version__ = "{version}"\n')
        older = "## [0.9.0] - 2020-01-31\n"
        (self.path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\n* New.\n\n{older}")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", version)

    def check(self) -> tuple[int, str]:
        """Return the exit code of the script and what it prints."""
        command = [sys.executable, "scripts/release", "--check"]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).strip()

    def module(self) -> ModuleType:
        """Return the script as a module."""
        loader = importlib.machinery.SourceFileLoader(
            "release", str(self.path / "scripts" / "release")
        )
        spec = importlib.util.spec_from_loader("release", loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_commit_that_agrees_can_be_released(repository: Repository) -> None:
    assert repository.check() == (0, "girder_dask 1.2.3 can be built.")
    repository.git("tag", "v1.2.3")  # built again from the commit that has the tag
    assert repository.check() == (0, "girder_dask 1.2.3 can be built.")


@pytest.mark.parametrize("name", ["girder_dask/_version.py", "girder_dask/new.py"])
def test_working_tree_with_changes_is_not_released(repository: Repository, name: str) -> None:
    with (repository.path / name).open("a") as file:
        file.write("# changed\n")
    code, line = repository.check()
    assert code == 1
    assert line.startswith(f"release: the working tree has changes ({name}). Commit or remove")


@pytest.mark.parametrize(
    ("version", "heading", "line"),
    [
        ("1.2.4", f"## [1.2.3] - {TODAY}", "has the version 1.2.4, and CHANGELOG.md begins with"),
        ("1.2.3", "## [1.2.3] - Unreleased", "CHANGELOG.md calls 1.2.3 'Unreleased'. Write the"),
        ("1.2.3", "## [1.2.3] - 2026-02-30", "CHANGELOG.md calls 1.2.3 '2026-02-30'."),
        ("1.2.3", "## [1.2.3] - 2999-01-01", "which is in the future"),
        ("newest", "## [newest] - 2026-01-01", "has no version such as 1.2.3, but 'newest'"),
    ],
)
def test_version_and_changelog_must_agree(
    repository: Repository, version: str, heading: str, line: str
) -> None:
    repository.commit(version, heading)
    code, printed = repository.check()
    assert code == 1
    assert printed.startswith("release: ")
    assert line in printed
    assert len(printed.splitlines()) == 1


def test_tag_of_another_commit_is_named(repository: Repository) -> None:
    repository.git("tag", "--annotate", "v1.2.3", "--message", "1.2.3")
    assert repository.check()[0] == 0
    repository.commit("1.2.3", f"## [1.2.3] - {TODAY}\n\n* More.")
    code, line = repository.check()
    assert code == 1
    assert line.startswith("release: another commit has the tag v1.2.3. Raise the version in ")


def built(place: Path, version: str, names: Iterable[str]) -> tuple[Path, Path]:
    """Write a wheel with these files, and an sdist of the whole package."""
    wheel = place / f"girder_dask-{version}-py3-none-any.whl"
    sdist = place / f"girder_dask-{version}.tar.gz"
    with zipfile.ZipFile(wheel, "w") as opened:
        for name in [*names, f"girder_dask-{version}.dist-info/METADATA"]:
            opened.writestr(name, "")
    with tarfile.open(sdist, "w:gz") as packed:
        for name in FILES:
            packed.addfile(tarfile.TarInfo(f"girder_dask-{version}/{name}"), io.BytesIO())
    return wheel, sdist


@pytest.mark.parametrize(
    ("version", "names", "problem"),
    [
        ("1.2.3", FILES, None),
        ("1.2.4", FILES, "girder_dask-1.2.4-py3-none-any.whl is not of version 1.2.3."),
        ("1.2.3", FILES[:1], "lacks girder_dask/girder_dask.yaml"),
        ("1.2.3", [*FILES, "girder_dask/old.py"], "has girder_dask/old.py, which is not committed"),
    ],
)
def test_files_of_wheel_and_sdist_are_those_of_the_commit(
    repository: Repository, version: str, names: list[str], problem: str | None
) -> None:
    release = repository.module()
    wheel, sdist = built(repository.path, version, names)
    if problem is None:
        release.check_files(wheel, sdist, "1.2.3")
    else:
        with pytest.raises(release.Mismatch) as raised:
            release.check_files(wheel, sdist, "1.2.3")
        assert problem in str(raised.value)


def test_imports_are_modules_of_the_package(repository: Repository) -> None:
    for name in repository.module().IMPORTS:
        assert importlib.util.find_spec(name) is not None, name
