"""Arguments that stand for something in Girder, and what is done with results.

A transform is given to ``delay()`` in place of a value. On the worker it becomes the
value: ``GirderFileId(id)`` the path of a downloaded file. A result transform is given in
``girder_result_hooks`` and gets what the function returned. Both are found in nested
lists, tuples and dicts.

A transform holds no Girder client when it travels. The runner hands it the one of its
job (``gc``), and a directory that is removed when the run ends (``work_dir``). Those of
``girder_worker_utils`` and anything else with ``transform()`` and ``cleanup()`` work too.
"""

from __future__ import annotations

import abc
import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from girder_dask.errors import TransformError

__all__ = [
    "GirderFileId",
    "GirderItemId",
    "GirderItemMetadata",
    "GirderUploadToFolder",
    "GirderUploadToItem",
    "ResultTransform",
    "TemporaryDirectory",
    "Transform",
    "detached",
    "is_transform",
]


def is_transform(value: Any) -> bool:
    """Say whether ``value`` has ``transform()`` and ``cleanup()``.

    >>> is_transform(GirderFileId('5f3c')), is_transform('5f3c'), is_transform(GirderFileId)
    (True, False, False)
    """
    return (
        not isinstance(value, type)
        and callable(getattr(value, "transform", None))
        and callable(getattr(value, "cleanup", None))
    )


def detached(value: Any) -> Any:
    """Return a transform as it travels, and any other value as it is.

    It is without its Girder client, and ids that it holds are strings: a worker need not
    have MongoDB's package, and ``girder_client`` wants strings.
    """
    if not is_transform(value):
        return value
    changes: dict[str, Any] = {"gc": None} if getattr(value, "gc", None) is not None else {}
    for name, held in getattr(value, "__dict__", {}).items():
        if type(held).__name__ == "ObjectId":
            changes[name] = str(held)
    if changes:
        value = copy.copy(value)
        vars(value).update(changes)
    return value


class _Bound:
    """What the runner binds to a run, and what every transform has."""

    #: The Girder client of the job, while it runs.
    gc: Any = None
    #: A directory of this run alone, while it runs.
    work_dir: Path | None = None

    def __init__(self, *, gc: Any = None) -> None:
        self.gc = gc

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("gc", None)
        state.pop("work_dir", None)
        return state

    def _repr_model_(self) -> str:
        """Return what is shown on the job's page."""
        return str(self)

    def cleanup(self) -> None:
        """Take away what :meth:`transform` left. Called whatever happened."""

    def directory(self) -> Path:
        """Make a directory that is gone after the run."""
        return Path(tempfile.mkdtemp(dir=self.work_dir))


class Transform(_Bound):
    """A value that is made on the worker.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``. The runner sets that of the job.
    """

    @abc.abstractmethod
    def transform(self) -> Any:
        """Return the value that the function gets."""


class ResultTransform(_Bound):
    """What is done with a result. ``job`` is the job document's id and title."""

    job: Mapping[str, Any] | None = None

    @abc.abstractmethod
    def transform(self, data: Any) -> Any:
        """Take the result; what is returned replaces it."""

    def exception(self) -> None:
        """Hear that the function raised, so that there is no result."""


class _OfResource:
    """What a transform has that stands for one thing in Girder."""

    kind = "resource"

    def __init__(self, _id: Any, *, gc: Any = None) -> None:
        self.gc = gc
        self._id = str(_id)

    def _repr_model_(self) -> str:
        return f"{type(self).__name__}('{self._id}')"

    __repr__ = _repr_model_

    def _failed(self, what: str, error: Exception) -> TransformError:
        return TransformError(f"{self._repr_model_()}: {what} {_reason(self.kind, error)}")


def _reason(kind: str, error: Exception) -> str:
    """Say why a request for something of this kind failed, for the owner of the job."""
    response = getattr(error, "response", None)
    if response is None:
        return f"Girder did not answer ({type(error).__name__}: {error})."
    try:
        message = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = ""
    status = response.status_code
    if status in (401, 403):
        return f"The owner of the job may not do this ({message or 'access denied'})."
    if status in (400, 404) and "nvalid" in message:
        return f"There is no such {kind} in Girder ({message})."
    return f"Girder answered {status}: {message or response.reason}"


class TemporaryDirectory(Transform):
    """An empty directory that is gone after the run. The function gets its path.

    Examples
    --------
    >>> import os
    >>> t = TemporaryDirectory()
    >>> os.path.isdir(t.transform())
    True
    >>> t.cleanup()
    """

    _path: Path | None = None

    def _repr_model_(self) -> str:
        return "TemporaryDirectory()"

    def transform(self) -> str:
        self._path = self.directory()
        return str(self._path)

    def cleanup(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)


class GirderFileId(_OfResource, Transform):
    """A Girder file. The function gets the path of a local copy with the file's own name.

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
    _path: Path | None = None

    @property
    def file_id(self) -> str:
        """The id of the file."""
        return self._id

    def transform(self) -> str:
        try:
            file = self.gc.getFile(self._id)
            self._path = self.directory() / _safe_name(file["name"], self._id)
            self.gc.downloadFile(self._id, str(self._path))
        except requests.RequestException as e:
            raise self._failed("the file cannot be fetched.", e) from e
        size = self._path.stat().st_size
        if size != file["size"]:
            raise TransformError(
                f"{self._repr_model_()}: {file['name']} has {file['size']} bytes in Girder, but "
                f"{size} arrived. Start the job again; if it stays so, the file is broken there."
            )
        return str(self._path)

    def cleanup(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path.parent, ignore_errors=True)


def _safe_name(name: str, default: str) -> str:
    """Return a name that stays in its directory, with the extension it had."""
    safe = name.replace("/", "_").replace("\0", "_")
    return default if safe in ("", ".", "..") else safe


class GirderItemId(_OfResource, Transform):
    """A Girder item. The function gets the path of a directory with its files."""

    kind = "item"
    _path: Path | None = None

    @property
    def item_id(self) -> str:
        """The id of the item."""
        return self._id

    def transform(self) -> str:
        self._path = self.directory()
        try:
            for file in self.gc.listFile(self._id):
                path = self._path / _safe_name(file["name"], file["_id"])
                if path.exists():  # Girder allows files of the same name in an item
                    path = path.with_name(f"{path.stem}-{file['_id']}{path.suffix}")
                self.gc.downloadFile(file["_id"], str(path))
        except requests.RequestException as e:
            raise self._failed("the item cannot be fetched.", e) from e
        return str(self._path)

    def cleanup(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)


class GirderItemMetadata(_OfResource, ResultTransform):
    """Set the result, a dict, as metadata of a Girder item."""

    kind = "item"

    @property
    def item_id(self) -> str:
        """The id of the item."""
        return self._id

    def transform(self, data: Any) -> Any:
        try:
            self.gc.addMetadataToItem(self._id, data)
        except requests.RequestException as e:
            raise self._failed("the metadata cannot be set.", e) from e
        return data


class _Upload(_OfResource, ResultTransform):
    """The result is a path; what is there is uploaded.

    Parameters
    ----------
    _id
        The id of the item or folder.
    delete_file
        Whether the local data is deleted afterwards.
    upload_kwargs
        More arguments for the upload method of ``girder_client``.
    """

    _source: Path | None = None

    def __init__(
        self,
        _id: Any,
        delete_file: bool = False,
        upload_kwargs: Mapping[str, Any] | None = None,
        *,
        gc: Any = None,
    ) -> None:
        super().__init__(_id, gc=gc)
        self.delete_file = delete_file
        self.upload_kwargs = dict(upload_kwargs or {})

    def transform(self, data: Any) -> str:
        self._source = Path(data)
        if not self._source.exists():
            raise TransformError(
                f"{self._repr_model_()}: the function returned {str(data)!r}, but there is no such "
                "file. Return the path of the file that is to be uploaded."
            )
        try:
            self._upload(self._source)
        except requests.RequestException as e:
            raise self._failed("the result cannot be uploaded.", e) from e
        return self._id

    @abc.abstractmethod
    def _upload(self, source: Path) -> None: ...

    def cleanup(self) -> None:
        if not self.delete_file or self._source is None:
            return
        if self._source.is_dir():
            shutil.rmtree(self._source, ignore_errors=True)
        else:
            self._source.unlink(missing_ok=True)


class GirderUploadToItem(_Upload):
    """Upload the result, the path of a file or of a flat directory, into a Girder item."""

    kind = "item"

    @property
    def item_id(self) -> str:
        """The id of the item."""
        return self._id

    def _upload(self, source: Path) -> None:
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        for file in files:
            if file.is_file():
                self.gc.uploadFileToItem(self._id, str(file), **self.upload_kwargs)


class GirderUploadToFolder(_Upload):
    """Upload the result, the path of a file or of a directory, into a Girder folder.

    Parameters
    ----------
    must_exist
        Whether it is an error when there is nothing at the path.
    """

    kind = "folder"

    def __init__(
        self,
        _id: Any,
        delete_file: bool = False,
        upload_kwargs: Mapping[str, Any] | None = None,
        must_exist: bool = True,
        *,
        gc: Any = None,
    ) -> None:
        super().__init__(_id, delete_file, upload_kwargs, gc=gc)
        self.must_exist = must_exist

    @property
    def folder_id(self) -> str:
        """The id of the folder."""
        return self._id

    def transform(self, data: Any) -> Any:
        if not self.must_exist and not Path(data).exists():
            return None
        return super().transform(data)

    def _upload(self, source: Path) -> None:
        if source.is_dir():
            self._upload_directory(source, self._id)
        else:
            self.gc.uploadFileToFolder(self._id, str(source), **self.upload_kwargs)

    def _upload_directory(self, directory: Path, folder_id: str) -> None:
        for entry in sorted(directory.iterdir()):
            if entry.is_file():
                self.gc.uploadFileToFolder(folder_id, str(entry), **self.upload_kwargs)
            elif entry.is_dir() and not entry.is_symlink():
                folder = self.gc.createFolder(folder_id, entry.name, reuseExisting=True)
                self._upload_directory(entry, folder["_id"])
