"""Directories of one run: the working directory of the task, and that of its inputs."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path

from girder_dask.utils.rmtree import rmtree

__all__ = ["Workspace"]


class Workspace:
    """A directory that is created on first use. Any thread may use it.

    Parameters
    ----------
    parent
        Where it is created. A missing parent is created too.
    prefix
        The beginning of its name.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> workspace = Workspace(Path(mkdtemp()), 'job-7-')
    >>> path = workspace.path()
    >>> path.is_dir(), path == workspace.path()
    (True, True)
    >>> workspace.remove()
    >>> path.exists()
    False
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        # A relative path would change with the working directory of the thread.
        self._parent = parent.absolute()
        self._prefix = prefix
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._removed = False

    def path(self) -> Path:
        """Return the directory.

        Raises
        ------
        OSError
            If it cannot be created, or was removed.
        """
        with self._lock:
            if self._removed:
                raise FileNotFoundError("The directory was removed, as the run has ended.")
            if self._path is None:
                self._path = self._create()
            return self._path

    def _create(self) -> Path:
        path = self._parent / f"{self._prefix}{secrets.token_hex(6)}"
        try:
            path.mkdir(mode=0o700)
        except FileNotFoundError:
            self._parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
        return path

    @property
    def made(self) -> Path | None:
        """The directory, None if it was not created."""
        return self._path

    def remove(self) -> None:
        """Remove the directory and its contents. It cannot be used afterwards.

        Raises
        ------
        OSError
            If something in it cannot be removed.
        """
        with self._lock:
            self._removed = True
        if self._path is not None and not _rmdir(self._path):
            rmtree(self._path)


def _rmdir(path: Path) -> bool:
    """Remove a directory if it is empty, as most are. Return True if it is gone."""
    try:
        path.rmdir()
    except OSError:
        return False
    return not os.path.lexists(path)
