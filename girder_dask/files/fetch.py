"""How a transform gets files: from the cache of the host, or else from Girder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from girder_dask.errors import TransformError
from girder_dask.files.base import ResourceTransform, safe_name
from girder_dask.files.downloads import DiskFull, FileChanged, download
from girder_dask.http.retry import get_json

__all__ = ["FileFetcher", "is_real_client", "list_pages"]

logger = logging.getLogger(__name__)

_PAGE = 500
_MOST_CHANGES = 5

#: What is to be fetched: the document of a file, and where it goes.
FetchTarget = tuple[Mapping[str, Any], Path]


def is_real_client(gc: Any) -> bool:
    """Say whether this is a client of a real Girder, not a stand-in of somebody's test."""
    return isinstance(getattr(gc, "urlBase", None), str)


def list_pages(gc: Any, path: str, parameters: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Return what Girder lists under a path, page by page."""
    offset = 0
    while True:
        page = get_json(gc, path, {**(parameters or {}), "limit": _PAGE, "offset": offset})
        yield from page
        offset += len(page)
        if len(page) < _PAGE:
            return


class FileFetcher:
    """What one run of a transform fetches. Files of the cache stay there until it is closed.

    Parameters
    ----------
    owner
        The transform.
    """

    def __init__(self, owner: ResourceTransform) -> None:
        self._owner = owner
        self._gc = owner.client()
        self._use = self._begin_use()
        self._done = 0
        self._total: int | None = 0

    def _begin_use(self) -> Any:
        if self._owner.cache is None:
            return None
        try:
            return self._owner.cache.use()
        except OSError as e:
            logger.warning("The cache of files cannot be used: %s", e)
            return None

    def put(self, wanted: Sequence[FetchTarget]) -> None:
        """Put files where they are to go, from the cache if that is possible.

        Raises
        ------
        TransformError
            If that is not possible.
        """
        sizes = [file.get("size") for file, _ in wanted]
        self._total = None if None in sizes else sum(s for s in sizes if s is not None)
        for file, path in wanted:
            self._put(file, path)
            self._done += path.stat().st_size

    def close(self) -> None:
        """Give the files back to the cache."""
        if self._use is not None:
            self._use.close()

    def _put(self, file: Mapping[str, Any], path: Path) -> None:
        for _ in range(_MOST_CHANGES):
            try:
                if not self._put_from_cache(file, path):
                    self._download(file, path)
                return
            except FileChanged as e:
                file = e.file
        raise self._owner.failed(
            f"{file['name']} changed {_MOST_CHANGES} times while it was fetched. Start the job "
            "again when nobody uploads into it any more."
        )

    def _put_from_cache(self, file: Mapping[str, Any], path: Path) -> bool:
        if self._use is None:
            return False
        try:
            cached = self._use.get(
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
        """Give a task a file of the cache under a name of its own."""
        try:
            os.link(cached, path)  # also to be seen where only the work directory is
        except OSError:
            path.symlink_to(cached)  # another disk, or one that has no such links
            return
        if self._owner.links is not None:
            found = path.stat()
            self._owner.links.add((found.st_dev, found.st_ino))

    def _with_time(self, file: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the document, for an imported file with the time that it has on its disk."""
        if not file.get("imported"):
            return file
        facts = {}
        with contextlib.suppress(requests.HTTPError):  # an older plugin has no such route
            facts = get_json(self._gc, f"dask/file/{file['_id']}/path")
        return {**file, "modified": facts.get("modified")}

    def _download(self, file: Mapping[str, Any], path: Path) -> None:
        try:
            download(self._gc, file, path, self._tell)
        except TransformError as e:
            raise type(e)(str(self._owner.failed(str(e))), permanent=e.permanent) from None

    def _tell(self, current: int, _total: int | None, name: str) -> None:
        self._owner.tell(self._done + current, self._total, name)
