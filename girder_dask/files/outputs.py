"""Hooks for results: uploads to an item, a folder or the job, and metadata."""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from girder_dask.files.fetch import is_real_client
from girder_dask.files.path_output import FencedOutput, PathOutput
from girder_dask.files.uploads import send_artifact, upload
from girder_dask.http.retry import retry
from girder_dask.protocol.job_fields import checked_fields

__all__ = [
    "GirderItemMetadata",
    "GirderUploadJobArtifact",
    "GirderUploadToFolder",
    "GirderUploadToItem",
]

_BAD_REQUEST = 400


class GirderItemMetadata(FencedOutput):
    """Set the result, a dict, as metadata of a Girder item.

    Parameters
    ----------
    _id
        The id of the item.
    """

    kind = "item"

    @property
    def item_id(self) -> str:
        """The id of the item."""
        return self._id

    def transform(self, data: Any) -> Any:
        gc = self.client()
        try:
            plain = checked_fields(data, "the result") if isinstance(data, Mapping) else data
            retry(lambda: self._set(gc, plain), gc)
        except requests.RequestException as e:
            raise self.failed("the metadata cannot be set.", e) from e
        except (TypeError, ValueError) as e:
            raise self.failed(
                f"the function returned a value that cannot be metadata: {e}. Return a dict of "
                "plain values: int() and float() convert numbers of numpy, tolist() arrays."
            ) from e
        return data

    def _set(self, gc: Any, data: Any) -> None:
        if is_real_client(gc) and self.upload_recovery is not None:
            path = f"item/{self._id}/metadata"
            gc.sendRestRequest("PUT", path, json=data, headers=self._headers())
        else:
            gc.addMetadataToItem(self._id, data)


class _Upload(PathOutput):
    """The upload of a result into an item or a folder.

    Parameters
    ----------
    _id
        The id of the item or folder.
    delete_file
        Whether the local files are deleted afterwards.
    upload_kwargs
        More arguments for the upload method of ``girder_client``: ``filename``,
        ``mimeType``, ``reference`` and ``progressCallback``.
    """

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

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal transform, all plain values."""
        more = {"delete_file": self.delete_file, "upload_kwargs": dict(self.upload_kwargs)}
        return {"_id": self._id, **more}

    def transform(self, data: Any) -> Any:
        try:
            path = self._path(data)
            self._check_place(Path(path))
            self.output_file_path = path
            exists = Path(path).exists()
        except TypeError:
            exists = False
        if not exists:
            raise self.failed(
                f"the function returned {data!r:.200}, but there is no such file. Return the "
                "path of the file to upload."
            )
        with self._explained():
            self._send(Path(path))
        return self._id

    @abc.abstractmethod
    def _send(self, source: Path) -> None: ...

    def _put(self, parent: str, file: Path) -> None:
        gc = self.client()
        if is_real_client(gc):
            options, parent_id = self.upload_kwargs, (self.kind, parent)
            upload(gc, parent_id, file, options, self._tell, self.upload_recovery, self.job)
            self._done += file.stat().st_size
        else:  # the stand-in of a user's test
            method = gc.uploadFileToItem if self.kind == "item" else gc.uploadFileToFolder
            method(parent, str(file), **self.upload_kwargs)

    def cleanup(self) -> None:
        if not self.delete_file or self.output_file_path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if Path(self.output_file_path).is_dir():
                shutil.rmtree(self.output_file_path)
            else:
                os.remove(self.output_file_path)  # noqa: PTH107 - as girder_worker does


class GirderUploadToItem(_Upload):
    """Upload the result, the path of a file or of a flat directory, into a Girder item.

    A file replaces the item's file of the same name. Other entries of a directory are left out, and
    the job's log names them.
    """

    kind = "item"

    @property
    def item_id(self) -> str:
        """The id of the item."""
        return self._id

    def _send(self, source: Path) -> None:
        files = self._flat(source)
        self._count(files)
        for file in files:
            self._put(self._id, file)


class GirderUploadToFolder(_Upload):
    """Upload the result, the path of a file or of a directory, into a Girder folder.

    Directories become subfolders, or are put into those of the same name. Each file becomes an
    item. Links to directories and special files are left out, and the job's log names them.

    Parameters
    ----------
    must_exist
        Whether a path that does not exist is an error.
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

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal transform, all plain values."""
        return {**super().arguments(), "must_exist": self.must_exist}

    def transform(self, data: Any) -> Any:
        if not self.must_exist and not self.confined and not Path(self._path(data)).exists():
            self._note(
                f"{self._repr_model_()} uploaded nothing: there is no file at {data!r:.200}."
            )
            return None
        return super().transform(data)

    def _send(self, source: Path) -> None:
        self._count([file for file, _ in _files_below(source, ())])
        made: dict[tuple[str, ...], str] = {(): self._id}
        for file, place in _files_below(source, ()):
            self._put(self._folder(place, made), file)
        for place in _directories_below(source, ()):
            self._folder(place, made)
        self._note_left_out(
            list(_others_below(source)),
            "only files and directories are sent, and no links to directories",
        )

    def _folder(self, place: tuple[str, ...], made: dict[tuple[str, ...], str]) -> str:
        """Return the id of a subfolder, which is made if it is missing."""
        if place not in made:
            parent = self._folder(place[:-1], made)
            self._check_name(Path(place[-1]))
            gc, name = self.client(), place[-1]
            make = gc.createFolder
            made[place] = retry(lambda: make(parent, name, reuseExisting=True), gc)["_id"]
        return made[place]


def _files_below(source: Path, place: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each file, and the names of the directories that it is in."""
    if not source.is_dir():
        yield source, place
        return
    for entry in sorted(source.iterdir()):
        if entry.is_file():
            yield entry, place
        elif entry.is_dir() and not entry.is_symlink():
            yield from _files_below(entry, (*place, entry.name))


def _directories_below(source: Path, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for entry in sorted(source.iterdir()) if source.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            yield (*place, entry.name)
            yield from _directories_below(entry, (*place, entry.name))


def _others_below(source: Path) -> Iterator[Path]:
    """Yield the entries that are not sent: links to directories, and special files."""
    for entry in sorted(source.iterdir()) if source.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            yield from _others_below(entry)
        elif not entry.is_file():
            yield entry


class GirderUploadJobArtifact(PathOutput):
    """Attach the result, the path of a file or of a flat directory, to the job.

    If the path does not exist, nothing is sent, and the job's log says so. Entries of a directory
    that are not files are left out, and the log names them. Users who may read the job may read its
    artifacts, which are deleted with the job.

    Parameters
    ----------
    job_id
        The id of the job. By default that of the running job.
    name
        The name of a single file in Girder. By default its own name.
    """

    kind = "job"

    def __init__(self, job_id: Any = None, name: str | None = None, *, gc: Any = None) -> None:
        super().__init__("" if job_id is None else job_id, gc=gc)
        self.job_id = None if job_id is None else str(job_id)
        self.name = name

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal transform, all plain values."""
        return {"job_id": self.job_id, "name": self.name}

    def _repr_model_(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    def transform(self, data: Any) -> None:
        source = self._source(data)
        if source is None:
            self._note(
                f"{self._repr_model_()} uploaded nothing: there is no file at {data!r:.200}."
            )
            return
        self._check_place(source)
        if self.job_id is None:
            if self.job is None:
                raise self.failed("there is no job to attach the result to. Give its id.")
            self.job_id = str(self.job["_id"])
        self._id = self.job_id
        files = self._flat(source)
        self._count(files)
        with self._explained():
            self._attach(files, None if source.is_dir() else self.name)

    def _attach(self, files: list[Path], name: str | None) -> None:
        """Attach the files that Girder accepts, and raise an error that names the others."""
        gc, refused = self.client(), []
        for file in files:
            try:
                send_artifact(gc, self._id, file, name, self._tell, self._headers())
            except requests.HTTPError as e:
                if e.response is None or e.response.status_code != _BAD_REQUEST:
                    raise
                refused.append((file.name, e))
            self._done += file.stat().st_size
        if refused:
            names = ", ".join(repr(file) for file, _ in refused)
            raise self.failed(f"these files cannot be attached: {names:.500}.", refused[0][1])
