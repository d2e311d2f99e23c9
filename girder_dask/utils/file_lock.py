"""Locks between processes and threads of one host, which vanish with their holder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["FileLock", "try_lock"]


class FileLock:
    """A lock on a file, made when it is missing. It is not taken when it is made.

    It is that of the operating system (``flock``): it ends with :meth:`release`, or with the
    process, however that ends. Who only reads shares it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # An open file, as that closes itself when an interruption drops it.
        self._file: BinaryIO | None = None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take it, if that is possible now.

        Returns
        -------
        bool
            Whether it is taken.

        Raises
        ------
        FileNotFoundError
            If there is no directory for it.
        """
        while True:
            file = self.path.open("ab", buffering=0)
            if not _flock(file, shared):
                file.close()
                return False
            if self._is_current(file):
                self._file = file
                return True
            file.close()  # it was removed meanwhile; there may be a new one

    def _is_current(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give it back. A forked process that has it as well no longer holds it either."""
        import fcntl

        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None


def _flock(file: BinaryIO, shared: bool) -> bool:
    import fcntl  # here, as nobody needs it where there is no fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def try_lock(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock for a block of code, if that is possible now; tell whether it is."""
    lock = FileLock(path)
    try:
        yield lock.try_acquire(shared=shared)
    finally:
        lock.release()
