"""The removal of a directory into which other processes may still write."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from girder_dask.utils.backoff import Backoff

__all__ = ["rmtree"]

_MAX_TRIES = 6
# Without jitter: the delays add up to the time for which rmtree() waits for other writers to stop.
_BACKOFF = Backoff(0.02, 1.0, jitter=0.0)

_OPEN_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Levels of directories that are open at once. Each takes a descriptor.
_MAX_OPEN_LEVELS = 32


def rmtree(directory: str | os.PathLike[str]) -> None:
    """Remove a directory and its content, whatever their modes, if it exists.

    It is renamed first, which shuts out writers that use its path. What they create at the path
    meanwhile is removed as well, for about half a second.

    Parameters
    ----------
    directory
        The directory, or a link that has replaced it.

    Raises
    ------
    OSError
        If something could not be removed.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp())
    >>> (path / 'locked').mkdir(mode=0o500)
    >>> rmtree(path)
    >>> path.exists()
    False
    """
    path = Path(directory)
    left = {path}
    for failures in range(_MAX_TRIES):
        if failures:
            time.sleep(_BACKOFF.delay_s(failures))
        if os.path.lexists(path):
            left.add(_renamed(path))
        problems = [problem for each in left if (problem := _problem_of(each)) is not None]
        left = {each for each in left if os.path.lexists(each)}
        if not left and not os.path.lexists(path):
            return
    raise problems[0] if problems else OSError(f"{path} is created again and again")


def _renamed(path: Path) -> Path:
    """Rename a directory within its parent if possible, and return its path."""
    name = path.with_name(f"{path.name[:200]}-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        path.rename(name)
        return name
    return path


def _problem_of(path: Path) -> Exception | None:
    """Try to remove a directory, and return the error that prevents it, if any."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return None
        try:
            shutil.rmtree(path)
        except (OSError, RecursionError):  # before Python 3.13 it recurses
            _flatten(path)
            shutil.rmtree(path)
    except FileNotFoundError:
        return None
    except (OSError, RecursionError) as e:
        return e
    return None


def _flatten(directory: Path) -> None:
    """Give the owner access to all directories below, and move deep ones to the top."""
    with contextlib.suppress(OSError):
        os.chmod(directory, stat.S_IRWXU)  # noqa: PTH101
    top = os.open(directory, _OPEN_FLAGS)
    try:
        todo = ["."]
        while todo:
            with _opened(todo.pop(), top) as there:
                todo += _lift(there, top)
    finally:
        os.close(top)


def _lift(directory: int, top: int, level: int = 1) -> list[str]:
    """Flatten one directory, and return the new names of the directories that were moved."""
    moved = []
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        with contextlib.suppress(OSError):  # it belongs to another user, or is gone
            os.chmod(name, stat.S_IRWXU, dir_fd=directory)
            if level == _MAX_OPEN_LEVELS:
                moved.append(secrets.token_hex(16))
                os.rename(name, moved[-1], src_dir_fd=directory, dst_dir_fd=top)
            else:
                with _opened(name, directory) as there:
                    moved += _lift(there, top, level + 1)
    return moved


@contextlib.contextmanager
def _opened(name: str, directory: int) -> Iterator[int]:
    fd = os.open(name, _OPEN_FLAGS, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
