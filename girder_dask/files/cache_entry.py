"""One file in the cache of a host, and its directory there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from girder_dask.files.downloads import DiskFull, content_version
from girder_dask.utils.file_lock import FileLock

__all__ = ["CacheEntry", "Room", "cache_key", "wait_for_fetch"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
#: One who fetches and is silent for so many seconds is not waited for.
_STALLED = 600.0


class Room(Protocol):
    """What an entry needs of the cache that it is in."""

    directory: Path

    def reserve(self, entry: Path) -> bool:
        """Make room for an entry, and say whether there is."""

    def discard(self, entry: Path) -> None:
        """Remove an entry."""

    def shrink(self) -> None:
        """Discard all that nobody uses."""


class CacheEntry:
    """One file in the cache, seen by one who wants it."""

    def __init__(self, cache: Room, key: str, name: str, file: Mapping[str, Any]) -> None:
        self._cache = cache
        self._size = int(file["size"])
        self._time = _stamp(key)
        self.path = cache.directory / f"{key}-{self._size}"
        self.content = self.path / "content" / name
        self.part = self.path / "part"

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[bool]:
        """Hold its lock for a block of code, if that is possible now; tell whether it is."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            lock = FileLock(self.path / "lock")
            taken = lock.try_acquire(shared=shared)
        except FileNotFoundError:
            if not self._cache.directory.exists():
                raise  # something has cleaned it away
            yield False  # discarded between the two
            return
        try:
            yield taken
        finally:
            lock.release()

    def is_there(self) -> bool:
        """Say whether the content is there, right or not."""
        return self.content.exists()

    def is_right(self) -> bool:
        """Say whether the content is as it was put here. Its time tells, as nobody sets that."""
        try:
            found = self.content.stat()
        except FileNotFoundError:
            return False
        as_put = found.st_size == self._size and int(found.st_mtime) == self._time
        if as_put and stat.S_IMODE(found.st_mode) != 0o444:
            self.content.chmod(0o444)
        return as_put

    def mark(self, user: str) -> None:
        """Note who uses it. One holds the lock, shared or not."""
        os.utime(self.path / "lock")
        users = self.path / "users"
        users.mkdir(exist_ok=True)
        (users / user).touch()

    def fill(self, fetch: Callable[[Path], Any]) -> bool:
        """Fetch the content, if there is room. One holds the lock alone."""
        if (self.path / "content").exists():
            logger.warning("A task has changed %s in the cache; it is fetched again.", self.content)
            self.part.touch()
            shutil.rmtree(self.path / "content", ignore_errors=True)
        elif not self.part.exists() and not self._cache.reserve(self.path):
            shutil.rmtree(self.path, ignore_errors=True)
            return False
        try:
            self._fetch(fetch)
            self.part.chmod(0o444)
            os.utime(self.part, (self._time, self._time))
            self.content.parent.mkdir()
            self.part.rename(self.content)
        except BaseException:
            with contextlib.suppress(OSError):  # something may have cleaned the directory
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
    """Return what names a version of a file in all the world, None if nothing does."""
    if file.get("size") is None or file.get("linkUrl"):
        return None  # what is behind a link may change and Girder not know
    if file.get("imported") and not file.get("modified"):
        return None  # the same holds for a file in place, unless Girder tells its time
    said = [url.rstrip("/"), *content_version(file), file.get("modified"), file.get("name")]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()[:40]


def _stamp(key: str) -> int:
    """Return the time that the content gets, in seconds: one in the past that follows from key."""
    return 10**9 + int(key[:8], 16) % (5 * 10**8)


def wait_for_fetch(entry: CacheEntry) -> Iterator[None]:
    """Wait between tries to have an entry, until the one who fetches it is stalled."""
    pause, seen, since = _FIRST_PAUSE, None, time.monotonic()
    while True:
        yield
        time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
        pause = min(pause * 1.5, _LONGEST_PAUSE)
        try:
            now = entry.part.stat()
            state = now.st_size, now.st_mtime_ns
        except FileNotFoundError:
            state = None
        if state != seen:
            seen, since = state, time.monotonic()
        elif time.monotonic() - since > _STALLED:
            return
