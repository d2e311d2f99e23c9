"""The removal of a directory that somebody may still write into."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from pathlib import Path

__all__ = ["remove"]

_TRIES = 6
_FIRST_PAUSE = 0.02  # seconds; it doubles


def remove(directory: str | os.PathLike[str]) -> None:
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
    >>> remove(path)
    >>> path.exists()
    False
    """
    path = Path(directory)
    with contextlib.suppress(OSError):
        path.rmdir()  # many are empty
        if not os.path.lexists(path):
            return
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
        except OSError:
            _open_up(path)
            shutil.rmtree(path)
    except FileNotFoundError:
        return None
    except (OSError, RecursionError) as e:
        return e
    return None


def _open_up(directory: Path) -> None:
    """Let the owner into a directory and into all that are in it."""
    todo = [str(directory)]
    while todo:
        here = todo.pop()
        with contextlib.suppress(OSError):  # it is another user's, or it is gone
            os.chmod(here, stat.S_IRWXU)  # noqa: PTH101
            with os.scandir(here) as entries:
                todo += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
