"""The directory into which a container writes, and what of it becomes the result."""

from __future__ import annotations

import contextlib
import heapq
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from girder_dask.errors import ContainerError
from girder_dask.utils.rmtree import rmtree

__all__ = ["check_names", "left_out", "make_directory", "remove_links_out", "results"]

_MAX_SHOWN = 20
_MAX_NAME_CHARACTERS = 200


def check_names(names: str | Sequence[str] | None) -> None:
    """Raise ContainerError unless names are those of files in the output directory."""
    for name in [names] if isinstance(names, str) else names or ():
        path = PurePosixPath(name if isinstance(name, str) else "")
        is_name = path.parts and not path.is_absolute() and ".." not in path.parts
        if not is_name or "\0" in str(path):
            raise ContainerError(
                f"outputs={name!r:.200}: give the name of a file in /outputs, such as 'mask.png'.",
                permanent=True,
            )


def make_directory(work_dir: Path | None) -> Path:
    """Make an output directory in that of a job; outside of a job, one that the caller removes."""
    return Path(tempfile.mkdtemp(prefix="outputs-", dir=work_dir))


def remove_links_out(directory: Path) -> list[str]:
    """Remove symbolic links that lead out of a directory, and return their names.

    A container can make a link to any path. On the host it would lead to another file. It can also
    make directories that cannot be listed, which are opened for their owner.
    """
    root = os.path.realpath(directory)
    removed = []
    _open(root)
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = os.path.join(parent, name)  # noqa: PTH118 - as os.walk does
            if not os.path.islink(path):  # noqa: PTH114
                if name in directories:
                    _open(path)
            elif not _is_below(path, root):
                os.unlink(path)  # noqa: PTH108
                removed.append(os.path.relpath(path, directory))
    return sorted(removed)


def _open(directory: str) -> None:
    """Let the owner of a directory list and change it, unless that is another user."""
    mode = stat.S_IMODE(os.lstat(directory).st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        with contextlib.suppress(PermissionError):
            os.chmod(directory, mode | stat.S_IRWXU)  # noqa: PTH101


def _is_below(path: str | os.PathLike[str], root: str) -> bool:
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def left_out(links: Sequence[str]) -> Iterator[str]:
    """Yield the lines for the log about links that were removed."""
    for name in links[:_MAX_SHOWN]:
        yield f"{_shown(name)} is left out: it is a link to another place."
    if len(links) > _MAX_SHOWN:
        yield f"… and {len(links) - _MAX_SHOWN:,} more are left out: they are links, too."


def _shown(name: str) -> str:
    """Return a name as part of one line of UTF-8."""
    shown = name if name.isprintable() else repr(name)
    return shown[:_MAX_NAME_CHARACTERS]


def results(directory: Path, names: str | Sequence[str] | None) -> Any:
    """Return the paths of outputs: those of the names, in their order, or of the directory.

    Raises
    ------
    ContainerError
        If the container has not written one of them, or something that is no file. The message
        says what it has written.
    """
    if names is None:
        return str(directory)
    if isinstance(names, str):
        return _existing(directory, names)
    return tuple(_existing(directory, name) for name in names)


def _existing(directory: Path, name: str) -> str:
    path = directory / name
    try:
        mode = path.stat().st_mode if _is_below(path, os.path.realpath(directory)) else None
    except OSError:
        mode = None
    if mode is None:
        raise ContainerError(
            f"The container has written no {name!r} into /outputs. It has written: "
            f"{_written(directory)}."
        )
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        # Whoever opens a pipe waits for its other end.
        raise ContainerError(
            f"The container has written {name!r} into /outputs, which is neither a file nor a "
            "directory, but a pipe, a socket or a device. Have it write a file."
        )
    return str(path)


def _written(directory: Path) -> str:
    """Return the first names of what a container has written, which may be millions of files."""
    count = 0

    def names() -> Iterator[str]:
        nonlocal count
        for parent, directories, files in os.walk(directory):
            for name in (*directories, *files):
                count += 1
                yield os.path.relpath(os.path.join(parent, name), directory)  # noqa: PTH118

    shown = ", ".join(map(_shown, heapq.nsmallest(_MAX_SHOWN, names())))
    more = f" and {count - _MAX_SHOWN:,} more" if count > _MAX_SHOWN else ""
    return f"{shown or 'nothing'}{more}"


def remove(directory: Path) -> None:
    """Remove an output directory."""
    rmtree(directory)
