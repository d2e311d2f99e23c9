"""The files of a transform, fetched from the cache of the host or from Girder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from girder_dask.errors import TransformError
from girder_dask.files.downloads import DiskFull, FileChanged, download
from girder_dask.files.transform_base import ResourceTransform, safe_name
from girder_dask.http.retry import get_json

__all__ = ["FileFetcher", "is_real_client", "list_pages"]

logger = logging.getLogger(__name__)

_PAGE_SIZE = 500
_MAX_CHANGES = 5

#: A file to fetch: its document and its local path.
FetchTarget = tuple[Mapping[str, Any], Path]


def is_real_client(gc: Any) -> bool:
    """Return True if a client calls a Girder, and is not a stand-in of a user's test."""
    return isinstance(getattr(gc, "urlBase", None), str)


def list_pages(gc: Any, path: str, parameters: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Yield what Girder lists at a path, page by page."""
    offset = 0
    while True:
        page = get_json(gc, path, {**(parameters or {}), "limit": _PAGE_SIZE, "offset": offset})
        yield from page
        offset += len(page)
        if len(page) < _PAGE_SIZE:
            return


class FileFetcher:
    """Fetches the files of one transform. Those of the cache stay there until it is closed.

    Parameters
    ----------
    owner
        The transform.
    """

    def __init__(self, owner: ResourceTransform) -> None:
        self._owner = owner
        self._gc = owner.client()
        self._lease = self._open_lease()
        self._done = 0
        self._total: int | None = 0

    def _open_lease(self) -> Any:
        if self._owner.cache is None:
            return None
        try:
            return self._owner.cache.lease()
        except OSError as e:
            logger.warning("The cache of files cannot be used: %s", e)
            return None

    def put(self, wanted: Sequence[FetchTarget]) -> None:
        """Put files at their paths, from the cache where possible.

        Raises
        ------
        TransformError
            If a file cannot be fetched as Girder describes it.
        """
        sizes = [file.get("size") for file, _ in wanted]
        self._total = None if None in sizes else sum(s for s in sizes if s is not None)
        for file, path in wanted:
            self._put(file, path)
            self._done += path.stat().st_size

    def close(self) -> None:
        """Release the files of the cache."""
        if self._lease is not None:
            self._lease.close()

    def _put(self, file: Mapping[str, Any], path: Path) -> None:
        for _ in range(_MAX_CHANGES):
            try:
                if not self._put_from_cache(file, path):
                    self._download(file, path)
                return
            except FileChanged as e:
                file = e.file
        raise self._owner.failed(
            f"{file['name']} changed {_MAX_CHANGES} times while it was fetched. Start the job "
            "again when the uploads into it have ended."
        )

    def _put_from_cache(self, file: Mapping[str, Any], path: Path) -> bool:
        if self._lease is None:
            return False
        try:
            cached = self._lease.get(
                self._gc.urlBase,
                self._with_time(file),
                lambda part: self._download(file, part),
                name=safe_name(str(file["name"]), str(file["_id"])),
                waiting=lambda: self._tell(0, None, str(file["name"])),
            )
        except requests.RequestException:
            raise
        except (OSError, DiskFull) as e:
            logger.warning("The cache of files cannot be used: %s", e)
            return False
        if cached is not None:
            self._link(cached, path)
        return cached is not None

    def _link(self, cached: Path, path: Path) -> None:
        """Give a cached file a name of its own in the directory of the task."""
        try:
            os.link(cached, path)  # which is also visible where only the work directory is
        except OSError:
            path.symlink_to(cached)  # it is on another disk, or the disk has no hard links
            return
        if self._owner.links is not None:
            found = path.stat()
            self._owner.links.add((found.st_dev, found.st_ino))

    def _with_time(self, file: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a file's document; that of an imported file with its time on Girder's disk."""
        if not file.get("imported"):
            return file
        on_disk = {}
        with contextlib.suppress(requests.HTTPError):  # an older plugin has no such route
            on_disk = get_json(self._gc, f"dask/file/{file['_id']}/path")
        return {**file, "modified": on_disk.get("modified")}

    def _download(self, file: Mapping[str, Any], path: Path) -> None:
        try:
            download(self._gc, file, path, self._tell)
        except TransformError as e:
            raise type(e)(str(self._owner.failed(str(e))), permanent=e.permanent) from None

    def _tell(self, current: int, _total: int | None, name: str) -> None:
        self._owner.tell(self._done + current, self._total, name)
