"""The directories of one run: the working directory of its task, and that of its inputs."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path

from girder_dask.utils.rmtree import rmtree

__all__ = ["Workspace"]


class Workspace:
    """A directory that is made with its first use. Any thread may use it.

    Parameters
    ----------
    parent
        Where it is made. That is made too, if it is not there.
    prefix
        How its name begins.

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
        # The working directory of a thread may be another one later.
        self._parent = parent.absolute()
        self._prefix = prefix
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._is_over = False

    def path(self) -> Path:
        """Return the directory.

        Raises
        ------
        OSError
            If it cannot be made, or if it was removed.
        """
        with self._lock:
            if self._is_over:
                raise FileNotFoundError("The run has ended, and with it its directory.")
            if self._path is None:
                self._path = self._made()
            return self._path

    def _made(self) -> Path:
        path = self._parent / f"{self._prefix}{secrets.token_hex(6)}"
        try:
            path.mkdir(mode=0o700)
        except FileNotFoundError:
            self._parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
        return path

    @property
    def made(self) -> Path | None:
        """The directory, None if nobody has asked for it."""
        return self._path

    def remove(self) -> None:
        """Remove it with all that is in it, if it was made. There is none afterwards.

        Raises
        ------
        OSError
            If something is left.
        """
        with self._lock:
            self._is_over = True
        if self._path is not None and not _removed_empty(self._path):
            rmtree(self._path)


def _removed_empty(path: Path) -> bool:
    """Remove a directory in one call if it is empty, as most are."""
    try:
        path.rmdir()
    except OSError:
        return False
    return not os.path.lexists(path)
