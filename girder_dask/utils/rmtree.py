"""The removal of a directory that somebody may still write into."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["rmtree"]

_TRIES = 6
_FIRST_PAUSE = 0.02  # seconds; it doubles

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# The levels of directories that are gone through at once. Each takes a descriptor.
_DEPTH = 32


def rmtree(directory: str | os.PathLike[str]) -> None:
    """Remove a directory with all that is in it, whatever modes it has, if it is there.

    Who writes into it by its path is shut out first, and what is made there meanwhile is
    removed too, for about half a second.

    Parameters
    ----------
    directory
        The directory, or a link that somebody has put in its place.

    Raises
    ------
    OSError
        If something is left.

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
    for n in range(_TRIES):
        if n:
            time.sleep(_FIRST_PAUSE * 2 ** (n - 1))
        if os.path.lexists(path):
            left.add(_aside(path))
        problems = [problem for each in left if (problem := _problem_of(each)) is not None]
        left = {each for each in left if os.path.lexists(each)}
        if not left and not os.path.lexists(path):
            return
    raise problems[0] if problems else OSError(f"{path} is made again and again")


def _aside(path: Path) -> Path:
    """Give a directory another name in its place, if that is possible."""
    name = path.with_name(f"{path.name[:200]}-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        path.rename(name)
        return name
    return path


def _problem_of(path: Path) -> Exception | None:
    """Try to remove it, and return what prevents that."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return None
        try:
            shutil.rmtree(path)
        except (OSError, RecursionError):  # it recurses, before Python 3.13
            _flatten(path)
            shutil.rmtree(path)
    except FileNotFoundError:
        return None
    except (OSError, RecursionError) as e:
        return e
    return None


def _flatten(directory: Path) -> None:
    """Let the owner into all directories below, and move those that lie deep to the top."""
    with contextlib.suppress(OSError):
        os.chmod(directory, stat.S_IRWXU)  # noqa: PTH101
    top = os.open(directory, _OPEN)
    try:
        todo = ["."]
        while todo:
            with _opened(todo.pop(), top) as there:
                todo += _lift(there, top)
    finally:
        os.close(top)


def _lift(directory: int, top: int, level: int = 1) -> list[str]:
    """Do so for one directory, and return the new names of those that were moved."""
    moved = []
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        with contextlib.suppress(OSError):  # it is another user's, or it is gone
            os.chmod(name, stat.S_IRWXU, dir_fd=directory)
            if level == _DEPTH:
                moved.append(secrets.token_hex(16))
                os.rename(name, moved[-1], src_dir_fd=directory, dst_dir_fd=top)
            else:
                with _opened(name, directory) as there:
                    moved += _lift(there, top, level + 1)
    return moved


@contextlib.contextmanager
def _opened(name: str, directory: int) -> Iterator[int]:
    fd = os.open(name, _OPEN, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
