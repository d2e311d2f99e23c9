"""The cache of input files that the workers of one host share.

Each file has a directory in the cache, its entry, named by a key and the size. The entry holds

* ``content/<name>``, the file itself;
* ``part``, the file while it is fetched;
* ``lock``, which is held to fetch, discard or lease the file;
* ``users``, with the names of the leases on the file.

Each lease holds a lock on the file of its name in ``users`` of the cache. The locks are those of
the operating system, so all locks of a process are free when it dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
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
from girder_dask.utils.backoff import Backoff
from girder_dask.utils.file_lock import FileLock, try_lock
from girder_dask.utils.private_directory import make_private

__all__ = ["CacheLease", "CacheUnusable", "FileCache", "open_cache"]

logger = logging.getLogger(__name__)

_LOCK_DELAY = Backoff(0.01, 0.01, jitter=0.9)
_ENTRY_NAME = re.compile(r"[0-9a-f]{40}-(\d+)")
_TRASH_PREFIX = "trash-"


class CacheUnusable(Exception):
    """The directory of the cache cannot be used; the message says why, and what to set."""


class FileCache:
    """A bounded cache of files. Several processes may share its directory.

    Parameters
    ----------
    directory
        Made if it is missing, for the user of this process alone. A directory that another user
        could change is refused with an OSError.
    max_bytes
        The most bytes of all files together.

    Examples
    --------
    >>> cache = FileCache(tempfile.mkdtemp(), 1000)
    >>> file = {'_id': '5f3c', 'name': 'a.txt', 'size': 2, 'created': '2026-01-01T00:00:00'}
    >>> with contextlib.closing(cache.lease()) as lease:
    ...     path = lease.get('https://example.org/api/v1', file, lambda part: part.write_text('hi'))
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

    def lease(self) -> CacheLease:
        """Return a lease. The files obtained through it stay until it is closed."""
        self._make()  # something may have removed it from the directory of temporary files
        return CacheLease(self)

    def size(self) -> int:
        """Return the bytes of all files, complete or being fetched."""
        return sum(_size(entry) for entry in self.entries())

    def entries(self) -> list[Path]:
        """Return the directories of all entries, the least recently used first."""
        return [entry for _, entry in sorted((_last_use(e), e) for e in self._found())]

    def _found(self) -> Iterator[Path]:
        with os.scandir(self.directory) as found:
            yield from (Path(f.path) for f in found if _ENTRY_NAME.fullmatch(f.name))

    # -- accounting, under one lock for the whole cache ----------------------------------------

    @contextlib.contextmanager
    def _accounting(self) -> Iterator[None]:
        lock = FileLock(self.directory / "lock")
        while not lock.try_acquire():
            time.sleep(_LOCK_DELAY.delay_s(1))
        try:
            yield
        finally:
            lock.release()

    @property
    def _counted(self) -> int:
        """The bytes of all entries; more than that after a process was killed."""
        try:
            return int((self.directory / "bytes").read_text())
        except (FileNotFoundError, ValueError):
            return self.size()

    @_counted.setter
    def _counted(self, value: int) -> None:
        (self.directory / "bytes").write_text(str(value))

    def reserve(self, entry: Path) -> bool:
        """Reserve room for an entry, and return True if there is. The caller holds its lock."""
        size = int(entry.name.rpartition("-")[2])
        with self._accounting():
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
        """Discard all files without a lease."""
        with self._accounting():
            self._counted = self._evict(0)

    def _evict(self, target: int) -> int:
        """Discard files until ``target`` bytes are left, if possible; return the bytes left."""
        self._sweep()
        entries = self.entries()
        total = sum(_size(entry) for entry in entries)
        for entry in entries:
            if total <= target:
                break
            with contextlib.suppress(FileNotFoundError), try_lock(entry / "lock") as alone:
                if alone and not self._is_leased(entry):
                    total -= self._remove(entry)
        return total

    def discard(self, entry: Path) -> None:
        """Remove an entry. The caller holds its lock."""
        with self._accounting():
            counted = self._counted
            self._counted = max(counted - self._remove(entry), 0)

    def _remove(self, entry: Path) -> int:
        size = _size(entry)
        trash = self.directory / f"{_TRASH_PREFIX}{secrets.token_hex(8)}"
        entry.rename(trash)  # at once, so that no process sees a half of it
        shutil.rmtree(trash, ignore_errors=True)
        return size

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        for trash in self.directory.glob(f"{_TRASH_PREFIX}*"):
            shutil.rmtree(trash, ignore_errors=True)
        for user in (self.directory / "users").iterdir():
            self._collect(user.name)

    def _is_leased(self, entry: Path) -> bool:
        return not all(self._collect(user.name) for user in (entry / "users").glob("*"))

    def _collect(self, user: str) -> bool:
        """Remove a lease whose process has died, and return True if there is no such lease."""
        path = self.directory / "users" / user
        if not path.exists():
            return True
        with try_lock(path) as gone:
            if gone:
                path.unlink(missing_ok=True)
            return gone


def _size(entry: Path) -> int:
    """Return the bytes that an entry counts: none while a process only asks for it."""
    counts = (entry / "content").exists() or (entry / "part").exists()
    return int(entry.name.rpartition("-")[2]) if counts else 0


def _last_use(entry: Path) -> int:
    try:
        return (entry / "lock").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class CacheLease:
    """The files of a cache that one run uses. Each thread and process needs its own lease."""

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
        """Return a file of the cache. A missing file is fetched first.

        If another run fetches it already, this one waits for it.

        Parameters
        ----------
        url
            The REST API of the Girder that has the file.
        file
            Its document there, as it is now. The caller has checked that the user may read it.
        fetch
            Writes the file to a path.
        name
            Its name in the cache, by default its own. It must not be a path.
        waiting
            Called repeatedly while another run fetches the file. It may raise.

        Returns
        -------
        Path or None
            The file, which must not be changed. None if the cache does not take it.

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
            path, is_final = self._try_get(entry, fetch)
            if is_final:
                return path
        return None

    def _try_get(self, entry: CacheEntry, fetch: Callable[[Path], Any]) -> tuple[Path | None, bool]:
        """Return the file, and whether it is final: another try returns the same."""
        if entry.exists():
            with entry.locked(shared=True) as locked:
                if locked and entry.is_intact():
                    return self._mark(entry), True
        with entry.locked() as locked:
            if not locked:
                return None, False
            if entry.is_intact() or entry.fill(fetch):
                return self._mark(entry), True
            return None, True

    def _mark(self, entry: CacheEntry) -> Path:
        if self._lock is None:
            lock = FileLock(self._cache.directory / "users" / secrets.token_hex(8))
            lock.try_acquire()  # no other process knows its name
            self._lock = lock
        entry.protect()
        entry.mark(self._lock.path.name)
        self._entries.append(entry.path)
        return entry.content

    def close(self) -> None:
        """Release the files."""
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
        If its directory cannot be used. Without a cache everything works, but more slowly.
    """
    where, size = config.get("worker.cache-directory"), config.nbytes("worker.cache-size")
    if size <= 0 or where is False or str(where).strip().lower() in ("", "false"):
        return None
    directory = Path(tempfile.gettempdir(), f"girder-dask-{_user()}") if where is None else where
    try:
        return FileCache(Path(directory).expanduser().absolute(), size)
    except OSError as e:
        raise CacheUnusable(
            f"The cache of input files is off: {e}. Set girder.worker.cache-directory to a "
            "directory that only this worker's user can change, or to false."
        ) from e


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "cache"
