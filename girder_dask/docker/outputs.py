"""The directory into which a container writes, and what of it becomes the result."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from girder_dask.errors import ContainerError
from girder_dask.utils.rmtree import rmtree

__all__ = ["check_names", "make_directory", "remove_links_out", "results"]

_MAX_SHOWN = 20


def check_names(names: str | Sequence[str] | None) -> None:
    """Raise ContainerError unless names are those of files in the output directory."""
    for name in [names] if isinstance(names, str) else names or ():
        path = PurePosixPath(name if isinstance(name, str) else "")
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise ContainerError(
                f"outputs={name!r:.200}: give the name of a file in /outputs, such as 'mask.png'.",
                permanent=True,
            )


def make_directory(work_dir: Path | None) -> Path:
    """Make an output directory in that of a job; outside of a job, one that the caller removes."""
    return Path(tempfile.mkdtemp(prefix="outputs-", dir=work_dir))


def remove_links_out(directory: Path) -> list[str]:
    """Remove symbolic links that lead out of a directory, and return their names.

    A container can make a link to any path. On the host it would lead to another file.
    """
    root = os.path.realpath(directory)
    removed = []
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = os.path.join(parent, name)  # noqa: PTH118 - as os.walk does
            if os.path.islink(path):  # noqa: PTH114
                target = os.path.realpath(path)
                if os.path.commonpath([root, target]) != root:
                    os.unlink(path)  # noqa: PTH108
                    removed.append(os.path.relpath(path, directory))
    return sorted(removed)


def results(directory: Path, names: str | Sequence[str] | None) -> Any:
    """Return the paths of outputs: those of the names, in their order, or of the directory.

    Raises
    ------
    ContainerError
        If the container has not written one of them. The message says what it has written.
    """
    if names is None:
        return str(directory)
    if isinstance(names, str):
        return _existing(directory, names)
    return tuple(_existing(directory, name) for name in names)


def _existing(directory: Path, name: str) -> str:
    path = directory / name
    if not path.exists():
        there = sorted(str(each.relative_to(directory)) for each in directory.rglob("*"))
        more = f" and {len(there) - _MAX_SHOWN} more" if len(there) > _MAX_SHOWN else ""
        raise ContainerError(
            f"The container has written no {name!r} into /outputs. It has written: "
            f"{', '.join(there[:_MAX_SHOWN]) or 'nothing'}{more}."
        )
    return str(path)


def remove(directory: Path) -> None:
    """Remove an output directory."""
    rmtree(directory)
