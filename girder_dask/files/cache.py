"""The cache of input files that the workers of one host share.

In the cache's directory there is for each file a directory, the entry, named after what
the file is and how many bytes it has. In it are ``content/<name>``, the file itself;
``part``, while it is fetched; ``lock``, which the one who fetches, discards or hands it out
holds; and ``users``, with the names of those who use it. Each user holds a lock on the file
of its name in ``users`` of the cache. All locks are the operating system's, so whatever a
process held is free when it dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from girder_dask import config
from girder_dask.files.cache_entry import CacheEntry, cache_key, wait_for_fetch
from girder_dask.utils.file_lock import FileLock, try_lock
from girder_dask.utils.private_directory import make_private

__all__ = ["CacheLease", "CacheUnusable", "FileCache", "open_cache"]

logger = logging.getLogger(__name__)

_ENTRY = re.compile(r"[0-9a-f]{40}-(\d+)")
_TRASH = "trash-"


class CacheUnusable(Exception):
    """The directory of the cache cannot be used; the message says why, and what to set."""


class FileCache:
    """A bounded set of files. Several processes may have one for the same directory.

    Parameters
    ----------
    directory
        Where it is. It is made if it is missing, for the user of this process alone. A directory
        that another user could change is refused with an OSError.
    max_bytes
        What all files in it may take together.

    Examples
    --------
    >>> cache = FileCache(tempfile.mkdtemp(), 1000)
    >>> file = {'_id': '5f3c', 'name': 'a.txt', 'size': 2, 'created': '2026-01-01T00:00:00'}
    >>> with contextlib.closing(cache.use()) as use:
    ...     path = use.get('https://example.org/api/v1', file, lambda part: part.write_text('hi'))
    ...     path.name, path.read_text()
    ('a.txt', 'hi')
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int) -> None:
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self._make()

    def _make(self) -> None:
        make_private(self.directory)
        make_private(self.directory / "users")

    def use(self) -> CacheLease:
        """Begin to use files. What is got through it stays until it is closed."""
        self._make()  # something may have cleaned the directory of temporary files
        return CacheLease(self)

    def size(self) -> int:
        """Return the bytes of all files, whole or on their way."""
        return sum(_size(entry) for entry in self.entries())

    def entries(self) -> list[Path]:
        """Return the directories of all entries, the least recently used first."""
        return [entry for _, entry in sorted((_last_use(e), e) for e in self._found())]

    def _found(self) -> Iterator[Path]:
        with os.scandir(self.directory) as found:
            yield from (Path(f.path) for f in found if _ENTRY.fullmatch(f.name))

    # -- room, under one lock for all of the cache --------------------------------------------

    @contextlib.contextmanager
    def _account(self) -> Iterator[None]:
        lock = FileLock(self.directory / "lock")
        while not lock.try_acquire():
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311
        try:
            yield
        finally:
            lock.release()

    @property
    def _counted(self) -> int:
        """The bytes of all entries, or more after a process was killed."""
        try:
            return int((self.directory / "bytes").read_text())
        except (FileNotFoundError, ValueError):
            return self.size()

    @_counted.setter
    def _counted(self, value: int) -> None:
        (self.directory / "bytes").write_text(str(value))

    def reserve(self, entry: Path) -> bool:
        """Make room for an entry whose lock one holds, and say whether there is."""
        size = int(entry.name.rpartition("-")[2])
        with self._account():
            counted = self._counted
            if counted + size > self.max_bytes:
                counted = self._evict(self.max_bytes - size)
            if counted + size > self.max_bytes:
                self._counted = counted
                return False
            (entry / "part").touch()
            self._counted = counted + size
            return True

    def shrink(self) -> None:
        """Discard all that nobody uses."""
        with self._account():
            self._counted = self._evict(0)

    def _evict(self, target: int) -> int:
        """Discard until there are so few bytes, if possible, and return how many there are."""
        self._sweep()
        entries = self.entries()
        total = sum(_size(entry) for entry in entries)
        for entry in entries:
            if total <= target:
                break
            with contextlib.suppress(FileNotFoundError), try_lock(entry / "lock") as alone:
                if alone and not self._in_use(entry):
                    total -= self._throw_away(entry)
        return total

    def discard(self, entry: Path) -> None:
        """Remove an entry whose lock one holds."""
        with self._account():
            counted = self._counted
            self._counted = max(counted - self._throw_away(entry), 0)

    def _throw_away(self, entry: Path) -> int:
        size = _size(entry)
        trash = self.directory / f"{_TRASH}{secrets.token_hex(8)}"
        entry.rename(trash)  # at once, so that nobody sees a half of it
        shutil.rmtree(trash, ignore_errors=True)
        return size

    def _sweep(self) -> None:
        """Remove what processes that were killed have left."""
        for trash in self.directory.glob(f"{_TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        for user in (self.directory / "users").iterdir():
            self._is_gone(user.name)

    def _in_use(self, entry: Path) -> bool:
        return not all(self._is_gone(user.name) for user in (entry / "users").glob("*"))

    def _is_gone(self, user: str) -> bool:
        path = self.directory / "users" / user
        if not path.exists():
            return True
        with try_lock(path) as gone:
            if gone:
                path.unlink(missing_ok=True)
            return gone


def _size(entry: Path) -> int:
    """Return what an entry counts: nothing, while somebody only asks for it."""
    counts = (entry / "content").exists() or (entry / "part").exists()
    return int(entry.name.rpartition("-")[2]) if counts else 0


def _last_use(entry: Path) -> int:
    try:
        return (entry / "lock").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class CacheLease:
    """What one run uses of a cache. Another thread or process needs one of its own."""

    def __init__(self, cache: FileCache) -> None:
        self._cache = cache
        self._lock: FileLock | None = None
        self._entries: list[Path] = []

    def get(
        self,
        url: str,
        file: Mapping[str, Any],
        fetch: Callable[[Path], Any],
        *,
        name: str | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> Path | None:
        """Return a file of the cache, and put it there first if it is missing.

        If somebody else fetches it at this time, wait for that.

        Parameters
        ----------
        url
            The REST API of the Girder that has the file.
        file
            Its document there, as it is now. That the user may read it has been checked.
        fetch
            Writes the file to a path.
        name
            Its name in the cache, by default its own; it must be no path.
        waiting
            Called again and again while somebody else fetches it; it may raise.

        Returns
        -------
        Path or None
            The file, which nobody may change. None if the cache does not take it.

        Raises
        ------
        Exception
            What ``fetch`` raised.
        """
        key = cache_key(url, file)
        if key is None or file["size"] > self._cache.max_bytes:
            return None
        entry = CacheEntry(self._cache, key, name or str(file["name"]), file)
        for _ in wait_for_fetch(entry):
            waiting()
            path, settled = self._try(entry, fetch)
            if settled:
                return path
        return None

    def _try(self, entry: CacheEntry, fetch: Callable[[Path], Any]) -> tuple[Path | None, bool]:
        """Return the file, and whether that is the last word."""
        if entry.is_there():
            with entry.locked(shared=True) as locked:
                if locked and entry.is_right():
                    return self._mark(entry), True
        with entry.locked() as locked:
            if not locked:
                return None, False
            if entry.is_right() or entry.fill(fetch):
                return self._mark(entry), True
            return None, True

    def _mark(self, entry: CacheEntry) -> Path:
        if self._lock is None:
            lock = FileLock(self._cache.directory / "users" / secrets.token_hex(8))
            lock.try_acquire()  # nobody else knows it
            self._lock = lock
        entry.mark(self._lock.path.name)
        self._entries.append(entry.path)
        return entry.content

    def close(self) -> None:
        """Use them no more."""
        if self._lock is None:
            return
        for entry in self._entries:
            (entry / "users" / self._lock.path.name).unlink(missing_ok=True)
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()
        self._lock, self._entries = None, []


def open_cache() -> FileCache | None:
    """Return the cache that the configuration asks for.

    ``girder.worker.cache-directory`` is a path, null for a directory of this user in the
    system's directory for temporary files, or false or empty for no cache.
    ``girder.worker.cache-size`` is its size.

    Returns
    -------
    FileCache or None
        None if the configuration asks for none.

    Raises
    ------
    CacheUnusable
        If its directory cannot be used. Without a cache all works, but more slowly.
    """
    where, size = config.get("worker.cache-directory"), config.nbytes("worker.cache-size")
    if size <= 0 or where is False or str(where).strip().lower() in ("", "false"):
        return None
    directory = Path(tempfile.gettempdir(), f"girder-dask-{_user()}") if where is None else where
    try:
        return FileCache(Path(directory).expanduser().absolute(), size)
    except OSError as e:
        raise CacheUnusable(
            f"The cache of input files is off: {e}. Let girder.worker.cache-directory name a "
            "directory that this worker's user alone may change, or set it to false."
        ) from e


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "cache"
