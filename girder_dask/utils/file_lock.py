"""Locks between the processes and threads of one host, which end with their holder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["FileLock", "try_lock"]


class FileLock:
    """A lock on a file, which is created if missing.

    It is a lock of the operating system (``flock``), and ends with :meth:`release` or with the
    process, even if that is killed. Readers can share it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # An open file and not a descriptor: it is closed even if an interruption loses it.
        self._file: BinaryIO | None = None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Acquire the lock if it is free, and return True if it is held.

        Raises
        ------
        FileNotFoundError
            If its directory does not exist.
        """
        while True:
            file = self.path.open("ab", buffering=0)
            if not _flock(file, shared):
                file.close()
                return False
            if self._is_current(file):
                self._file = file
                return True
            file.close()  # the file was removed meanwhile; there may be a new one

    def _is_current(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock, also for a forked process that shares it."""
        import fcntl

        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None


def _flock(file: BinaryIO, shared: bool) -> bool:
    import fcntl  # here, since not all systems have it

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def try_lock(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock for a block of code if it is free. Yields whether it is held."""
    lock = FileLock(path)
    try:
        yield lock.try_acquire(shared=shared)
    finally:
        lock.release()
