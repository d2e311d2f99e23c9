"""Directories in which no other user of the host can create or replace files.

If the name of a directory can be guessed, another user may make it first, or may own a directory
above it. The rules are those of ``StrictModes`` in OpenSSH: each directory above belongs to root
or to the user of this process, and if others may write into it, it has the sticky bit, as ``/tmp``
has.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

__all__ = ["make_private", "require_private", "require_unchangeable"]

_ROOT = 0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private(directory: Path) -> None:
    """Make a directory for the user of this process alone, or check an existing one.

    Raises
    ------
    OSError
        If it cannot be made, or if another user could change its content.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> directory = Path(mkdtemp()) / 'a' / 'b'
    >>> make_private(directory)
    >>> oct(directory.stat().st_mode & 0o777)
    '0o700'
    """
    for path in (*reversed(directory.parents), directory):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    require_private(directory)


def require_private(directory: Path) -> None:
    """Raise OSError unless a directory belongs to the user of this process alone.

    Raises
    ------
    NotADirectoryError
        If it is a link or a file.
    PermissionError
        If it belongs to another user, or others may use it or could replace it.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{directory} is a link or a file, not a directory")
    if found.st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user (uid {found.st_uid})")
    if found.st_mode & _OTHERS:
        raise PermissionError(f"others may use {directory}; run 'chmod 700' on it")
    require_unchangeable(directory)


def require_unchangeable(directory: Path) -> None:
    """Raise PermissionError if another user could replace a directory, or one above it.

    Examples
    --------
    >>> require_unchangeable(Path('/usr/bin'))
    """
    directory = directory.absolute()
    for path in {*directory.parents, *directory.resolve(strict=True).parents}:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            _check_owner(path, found, directory)
            found = path.stat()
        _check_owner(path, found, directory)
        if _is_writable_by_others(found) and not found.st_mode & stat.S_ISVTX:
            raise PermissionError(
                f"others may write into {path}, so they could replace {directory}"
            )


def _check_owner(path: Path, found: os.stat_result, directory: Path) -> None:
    if found.st_uid not in (_ROOT, os.getuid()):
        raise PermissionError(
            f"{path} belongs to another user (uid {found.st_uid}), who could replace {directory}"
        )


def _is_writable_by_others(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)


def _is_own_group(group_id: int) -> bool:
    """Return True if a group has one user only, as Debian and others make one for each user."""
    import grp
    import pwd

    if group_id == _ROOT:
        return True
    try:
        group, user = grp.getgrgid(group_id), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
