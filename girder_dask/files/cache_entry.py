"""One file in the cache of a host, with its directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_dask.files.downloads import DiskFull, content_version
from girder_dask.utils.backoff import Backoff
from girder_dask.utils.file_lock import FileLock

if TYPE_CHECKING:
    from girder_dask.files.cache import FileCache

__all__ = ["CacheEntry", "cache_key", "wait_for_fetch"]

logger = logging.getLogger(__name__)

_READ_ONLY = 0o444

_BACKOFF = Backoff(0.01, 0.25)
#: Seconds without a byte after which another process that fetches the file is given up.
_STALL_TIMEOUT_S = 600.0


class CacheEntry:
    """One file in the cache, as seen by a process that wants the file."""

    def __init__(self, cache: FileCache, key: str, name: str, file: Mapping[str, Any]) -> None:
        self._cache = cache
        self._size = int(file["size"])
        self._time = _stamp(key)
        self.path = cache.directory / f"{key}-{self._size}"
        self.content = self.path / "content" / name
        self.part = self.path / "part"

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[bool]:
        """Hold its lock for a block of code if it is free. Yields whether it is held."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            lock = FileLock(self.path / "lock")
            taken = lock.try_acquire(shared=shared)
        except FileNotFoundError:
            if not self._cache.directory.exists():
                raise  # something has removed the cache
            yield False  # discarded between mkdir and the lock
            return
        try:
            yield taken
        finally:
            lock.release()

    def exists(self) -> bool:
        """Return True if there is content, intact or not."""
        return self.content.exists()

    def is_intact(self) -> bool:
        """Return True if the content is as it was fetched.

        A task that writes into the file changes its size or its time, which follows from the key.
        """
        try:
            found = self.content.stat()
        except FileNotFoundError:
            return False
        return found.st_size == self._size and int(found.st_mtime) == self._time

    def protect(self) -> None:
        """Make the content read-only again. The caller holds the lock, shared or not."""
        if stat.S_IMODE(self.content.stat().st_mode) != _READ_ONLY:
            self.content.chmod(_READ_ONLY)

    def mark(self, user: str) -> None:
        """Record a user of the file. The caller holds the lock, shared or not."""
        os.utime(self.path / "lock")
        users = self.path / "users"
        users.mkdir(exist_ok=True)
        (users / user).touch()

    def fill(self, fetch: Callable[[Path], Any]) -> bool:
        """Fetch the content if there is room, and return True if there is.

        The caller holds the lock alone.
        """
        if (self.path / "content").exists():
            logger.warning("A task changed %s in the cache; it is fetched again.", self.content)
            self.part.touch()
            shutil.rmtree(self.path / "content", ignore_errors=True)
        elif not self.part.exists() and not self._cache.reserve(self.path):
            shutil.rmtree(self.path, ignore_errors=True)
            return False
        try:
            self._fetch(fetch)
            self.part.chmod(_READ_ONLY)
            os.utime(self.part, (self._time, self._time))
            self.content.parent.mkdir()
            self.part.rename(self.content)
        except BaseException:
            with contextlib.suppress(OSError):  # something may have removed the directory
                self.part.touch()  # so that it counts until it is discarded
                self._cache.discard(self.path)
            raise
        return True

    def _fetch(self, fetch: Callable[[Path], Any]) -> None:
        try:
            fetch(self.part)
        except DiskFull:
            self._cache.shrink()
            self.part.touch()
            fetch(self.part)


def cache_key(url: str, file: Mapping[str, Any]) -> str | None:
    """Return a key for this version of a file, unique among all Girders; None if there is none."""
    if file.get("size") is None or file.get("linkUrl"):
        return None  # the target of a link may change without Girder's knowledge
    if file.get("imported") and not file.get("modified"):
        return None  # so may an imported file, unless Girder tells its time on the disk
    parts = [url.rstrip("/"), *content_version(file), file.get("modified"), file.get("name")]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:40]


def _stamp(key: str) -> int:
    """Return the modification time of the content in seconds: in the past, derived from the key."""
    return 10**9 + int(key[:8], 16) % (5 * 10**8)


def wait_for_fetch(entry: CacheEntry) -> Iterator[None]:
    """Yield before each try to get an entry, until the process that fetches it has stalled."""
    seen, since = None, time.monotonic()
    for delay_s in _BACKOFF.delays_s():
        yield
        time.sleep(delay_s)
        try:
            now = entry.part.stat()
            state = now.st_size, now.st_mtime_ns
        except FileNotFoundError:
            state = None
        if state != seen:
            seen, since = state, time.monotonic()
        elif time.monotonic() - since > _STALL_TIMEOUT_S:
            return
