"""Transforms of arguments: files, items and folders of Girder, and temporary directories."""

from __future__ import annotations

import abc
import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from girder_dask import config
from girder_dask.errors import TransformError
from girder_dask.files.fetch import FetchTarget, FileFetcher, is_real_client, list_pages
from girder_dask.files.transform_base import ResourceTransform, Transform, safe_name
from girder_dask.http.retry import get_json
from girder_dask.utils.rmtree import rmtree

__all__ = [
    "GirderFileId",
    "GirderFileIdAllowDirect",
    "GirderFolderId",
    "GirderItemId",
    "TemporaryDirectory",
]


class TemporaryDirectory(Transform):
    """An empty directory that is removed after the run. The function gets its path.

    Examples
    --------
    >>> import os
    >>> t = TemporaryDirectory()
    >>> os.path.isdir(t.transform())
    True
    >>> t.cleanup()
    """

    temp_dir_path: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal transform: none."""
        return {}

    def _repr_model_(self) -> str:
        return "TemporaryDirectory"

    def transform(self) -> str:
        self.temp_dir_path = str(self.directory())
        return self.temp_dir_path

    def cleanup(self) -> None:
        if self.temp_dir_path is not None:
            rmtree(self.temp_dir_path)


class _Fetched(ResourceTransform, Transform):
    """A resource that is fetched from Girder into a directory of its own."""

    temp_dir_path: Path | None = None
    _fetcher: FileFetcher | None = None

    def transform(self) -> str:
        directory = self.temp_dir_path = self.directory()
        gc = self.client()
        with self._explained():
            if not is_real_client(gc):
                return str(self._fetch_through(gc, directory))
            self._fetcher = FileFetcher(self)
            path, wanted = self._plan(gc, directory)
            self._fetcher.put(wanted)
            return str(path)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except requests.RequestException as e:
            raise self.failed(f"the {self.kind} cannot be fetched.", e) from e

    @abc.abstractmethod
    def _plan(self, gc: Any, directory: Path) -> tuple[Path, list[FetchTarget]]:
        """Return the path that the function gets, and the files to fetch."""

    @abc.abstractmethod
    def _fetch_through(self, gc: Any, directory: Path) -> Path:
        """Fetch it through the methods of a user's stand-in for the client."""

    def cleanup(self) -> None:
        if self._fetcher is not None:
            self._fetcher.close()
        if self.temp_dir_path is not None:
            rmtree(self.temp_dir_path)


class GirderFileId(_Fetched):
    """A Girder file. The function gets the path of a local copy with the file's own name.

    The copy may be read-only: other jobs may share it.

    Parameters
    ----------
    _id
        The id of the file.

    Examples
    --------
    >>> GirderFileId('5f3c2a')
    GirderFileId('5f3c2a')
    """

    kind = "file"

    @property
    def file_id(self) -> str:
        """The id of the file."""
        return self._id

    def _plan(self, gc: Any, directory: Path) -> tuple[Path, list[FetchTarget]]:
        file = get_json(gc, f"file/{self._id}")
        path = directory / safe_name(file["name"], self._id)
        return path, [(file, path)]

    def _fetch_through(self, gc: Any, directory: Path) -> Path:
        name = gc.getFile(self._id)["name"]
        path = directory / (safe_name(name, self._id) if isinstance(name, str) else self._id)
        gc.downloadFile(self._id, str(path))
        return path


class GirderFileIdAllowDirect(GirderFileId):
    """A Girder file, used in place if the worker may and can reach it, else as a local copy.

    In place means that the function gets a link, named like the file, to Girder's own copy. Both
    operators must allow that: Girder's setting ``dask.direct_path``, and
    ``girder.worker.direct-paths`` or ``GW_DIRECT_PATHS`` on the worker. Girder names the path after
    it has checked that the job's owner may read the file, and the file there must have the size
    that Girder knows. The function must not change the file.

    Parameters
    ----------
    _id
        The id of the file.
    name
        Ignored: Girder knows the name.
    local_path
        Ignored and not trusted: Girder names the path.
    """

    def __init__(
        self, _id: Any, name: str = "", local_path: str | None = None, *, gc: Any = None
    ) -> None:
        super().__init__(_id, gc=gc)
        self.file_name = name
        self.local_file_path = None if local_path is None else str(local_path)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal transform, all plain values."""
        return {"_id": self._id, "name": self.file_name, "local_path": self.local_file_path}

    def _repr_model_(self) -> str:
        given = [self._id, self.file_name]
        if self.local_file_path:
            given.append(self.local_file_path)
        return f"{type(self).__name__}({', '.join(map(repr, given))})"

    def transform(self) -> str:
        gc = self.client()
        if _direct_paths_allowed():
            if not is_real_client(gc):
                # Girder cannot be asked. The path is taken as girder_worker takes it.
                if self.local_file_path and Path(self.local_file_path).is_file():
                    return self.local_file_path
            elif (path := self._in_place(gc)) is not None:
                return str(path)
        return super().transform()

    def _in_place(self, gc: Any) -> Path | None:
        with self._explained():
            file = get_json(gc, f"file/{self._id}")  # which checks that the user may read it
            try:
                on_disk = get_json(gc, f"dask/file/{self._id}/path")
            except requests.HTTPError:
                return None
        place = on_disk.get("path")
        if not place or not _is_file_of(place, file.get("size"), on_disk.get("modified")):
            return None
        self.temp_dir_path = self.directory()
        path = self.temp_dir_path / safe_name(file["name"], self._id)
        path.symlink_to(place)
        return path


def _direct_paths_allowed() -> bool:
    return bool(os.environ.get("GW_DIRECT_PATHS")) or bool(config.get("worker.direct-paths"))


def _is_file_of(path: str, size: int | None, modified: float | None) -> bool:
    """Return True if Girder's file is at a path, and not another file of this host."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return False
    same = found.st_size == size and modified in (None, found.st_mtime)
    return stat.S_ISREG(found.st_mode) and same and os.access(path, os.R_OK)


class GirderItemId(_Fetched):
    """A Girder item. The function gets the path of a directory with its files.

    The files may be read-only: other jobs may share the copies. If several files have the same
    name, the later ones have their id in front of it.
    """

    kind = "item"

    @property
    def item_id(self) -> str:
        """The id of the item."""
        return self._id

    def _plan(self, gc: Any, directory: Path) -> tuple[Path, list[FetchTarget]]:
        free = _free_names(directory)
        return directory, [(f, free(f)) for f in list_pages(gc, f"item/{self._id}/files")]

    def _fetch_through(self, gc: Any, directory: Path) -> Path:
        gc.downloadItem(self._id, str(directory), self._id)
        return directory / self._id


class GirderFolderId(_Fetched):
    """A Girder folder with all its content. The function gets the path of a directory.

    A subfolder becomes a directory. An item with a single file of the item's own name becomes that
    file. Any other item becomes a directory with its files. Where a name is taken, the id is put in
    front of it. The files may be read-only.

    Parameters
    ----------
    _id
        The id of the folder.

    Examples
    --------
    >>> GirderFolderId('5f3c2a')
    GirderFolderId('5f3c2a')
    """

    kind = "folder"

    @property
    def folder_id(self) -> str:
        """The id of the folder."""
        return self._id

    def _plan(self, gc: Any, directory: Path) -> tuple[Path, list[FetchTarget]]:
        folder = get_json(gc, f"folder/{self._id}")
        wanted: list[FetchTarget] = []
        todo = [(folder, directory)]
        while todo:
            folder, here = todo.pop()
            free = _free_names(here)
            inside = {"parentType": "folder", "parentId": folder["_id"]}
            for child in list_pages(gc, "folder", inside):
                path = free(child)
                path.mkdir()
                todo.append((child, path))
            for item in list_pages(gc, "item", {"folderId": folder["_id"]}):
                wanted += _plan_item(gc, item, free(item))
        return directory, wanted

    def _fetch_through(self, gc: Any, directory: Path) -> Path:
        gc.downloadFolderRecursive(self._id, str(directory))
        return directory


def _plan_item(gc: Any, item: Mapping[str, Any], path: Path) -> list[FetchTarget]:
    files = list(list_pages(gc, f"item/{item['_id']}/files"))
    if len(files) == 1 and files[0]["name"] == item["name"]:
        return [(files[0], path)]
    path.mkdir()
    free = _free_names(path)
    return [(file, free(file)) for file in files]


def _free_names(directory: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Return a function that gives each resource of Girder a path of its own in a directory."""
    taken: set[str] = set()

    def free(resource: Mapping[str, Any]) -> Path:
        identifier, name = str(resource["_id"]), str(resource["name"])
        safe = safe_name(name, identifier)
        if safe in taken:
            safe = safe_name(f"{identifier}-{name}", identifier)
        if safe in taken:
            raise TransformError(f"There is no free name for {name} ({identifier}).")
        taken.add(safe)
        return directory / safe

    return free
