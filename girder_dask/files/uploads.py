"""The upload of one file, in pieces that are sent again when a connection breaks."""

from __future__ import annotations

import hashlib
import mimetypes
import uuid
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import requests

from girder_dask.files.downloads import Report
from girder_dask.files.upload_recovery import UploadRecovery, UploadState
from girder_dask.http.request_errors import is_unsent
from girder_dask.http.retry import RetryBudget, get_json, health_probe, retry
from girder_dask.protocol.names import JOB_HEADER

__all__ = ["attempt_headers", "send_artifact", "upload"]


_BUFFER_BYTES = 1 << 20


def attempt_headers(
    recovery: UploadRecovery | None, job: Mapping[str, Any] | None, upload: str | None = None
) -> dict[str, str]:
    """Return headers that name the attempt, so that Girder refuses one that is over.

    Parameters
    ----------
    recovery
        That of the attempt. Without it there are no headers.
    job
        As ``ResultTransform.job``.
    upload
        The name of the upload. By default a new one.
    """
    if recovery is None:
        return {}
    named = {JOB_HEADER: str(job["_id"])} if job and job.get("_id") else {}
    return named | recovery.headers(upload or uuid.uuid4().hex)


class _FilePart:
    """A part of a file as the body of a request, read while it is sent."""

    def __init__(
        self, source: BufferedReader, offset: int, size: int, sent: Callable[[int], None]
    ) -> None:
        self._source = source
        self._offset = offset
        self._size = size
        self._sent = sent

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[memoryview]:
        # One buffer for all reads. In a Dask worker the memory of each new one would be mapped and
        # unmapped, which takes longer than to read and send it.
        buffer = memoryview(bytearray(min(self._size, _BUFFER_BYTES)))
        self._source.seek(self._offset)
        left = self._size
        while left and (count := self._source.readinto(buffer[: min(left, _BUFFER_BYTES)])):
            left -= count
            yield buffer[:count]
            self._sent(self._offset + self._size - left)


class _BrokenUpload(Exception):
    """Girder may have a part of a piece, so the upload has to start again."""

    def __init__(self, error: requests.RequestException) -> None:
        super().__init__(str(error))
        self.error = error


class _Upload:
    """The upload of a file into an item or a folder."""

    def __init__(
        self,
        gc: Any,
        parent: tuple[str, str],
        source: Path,
        options: dict[str, Any],
        report: Report,
        recovery: UploadRecovery | None,
        job: Mapping[str, Any] | None,
    ) -> None:
        self._gc = gc
        self._parent = parent
        self._source = source
        self._name = Path(options.pop("filename", None) or source).name
        self._type = options.pop("mimeType", None) or mimetypes.guess_type(source)[0]
        self._reference = options.pop("reference", None)
        self._callback = options.pop("progressCallback", None)
        if options:
            raise TypeError(f"upload_kwargs has {', '.join(options)}, which uploads do not accept")
        self._report = report
        self._recovery = recovery
        # The same after each restart, by which Girder finds what the upload has left.
        self._upload_name = uuid.uuid4().hex
        self._headers = attempt_headers(recovery, job, self._upload_name)
        self._size = source.stat().st_size

    def run(self) -> None:
        """Send the file. An upload that broke within a piece starts again."""
        replaced = self._file_to_replace()
        if replaced is not None and self._has_same_content(replaced):
            return
        budget = RetryBudget(probe=health_probe(self._gc))
        while True:
            document = self._begin(replaced)
            if self._size == 0:
                return  # Girder finishes an empty file at once
            try:
                self._send(str(document["_id"]), budget)
                return
            except _BrokenUpload as e:
                budget.wait(e.error)

    def _file_to_replace(self) -> Mapping[str, Any] | None:
        """Return the item's file of this name, or the folder's one from an earlier attempt.

        Any other upload into a folder makes a new item.
        """
        kind, parent = self._parent
        if kind != "item":
            return (
                None
                if self._recovery is None
                else self._recovery.take(self._gc, parent, self._name)
            )
        for file in retry(lambda: list(self._gc.listFile(parent)), self._gc):
            if file["name"] == self._name:
                return dict(file)
        return None

    def _has_same_content(self, file: Mapping[str, Any]) -> bool:
        if file.get("size") != self._size or not file.get("sha512"):
            return False
        with self._source.open("rb") as f:
            digest = hashlib.sha512()
            while piece := f.read(_BUFFER_BYTES):
                digest.update(piece)
        return bool(digest.hexdigest() == file["sha512"])

    def _begin(self, replaced: Mapping[str, Any] | None) -> Mapping[str, Any]:
        more = {"reference": self._reference} if self._reference else {}
        if replaced is not None:
            path, method = f"file/{replaced['_id']}/contents", "PUT"
            parameters = {"size": self._size, **more}
        else:
            path, method = "file", "POST"
            kind, parent = self._parent
            parameters = {"parentType": kind, "parentId": parent, "name": self._name}
            parameters |= {"size": self._size, "mimeType": self._type, **more}
        budget = RetryBudget(probe=health_probe(self._gc))
        while True:
            try:
                return dict(
                    self._gc.sendRestRequest(method, path, parameters, headers=self._headers)
                )
            except requests.RequestException as e:
                # An empty file must not be made twice.
                may_be_made = self._size == 0 and not is_unsent(e)
                if may_be_made and self._recovery is None:
                    raise
                budget.wait(e)
                if may_be_made and self._settle() == UploadState.COMPLETE:
                    return {}

    def _send(self, upload: str, budget: RetryBudget) -> None:
        offset = 0
        with self._source.open("rb") as source:
            while offset < self._size:
                part = _FilePart(
                    source, offset, min(self._gc.MAX_CHUNK_SIZE, self._size - offset), self._sent
                )
                try:
                    chunk = f"file/chunk?offset={offset}&uploadId={upload}"
                    self._gc.post(chunk, data=part, headers=self._headers)
                except requests.RequestException as e:
                    if self._arrived(upload, offset, len(part), e):
                        return
                    budget.wait(e)
                    continue
                offset += len(part)
                budget.progress()
                if callable(self._callback):
                    self._callback({"current": offset, "total": self._size})

    def _sent(self, count: int) -> None:
        self._report(count, self._size, self._name)

    def _arrived(
        self, upload: str, offset: int, length: int, error: requests.RequestException
    ) -> bool:
        """Return True if the upload is complete although a request failed, False to send it again.

        Girder resumes an upload that broke within a piece wrongly: it keeps the bytes that it has,
        but leaves them out of the checksum. Such an upload is dropped.
        """
        if is_unsent(error):
            return False
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status < 500:
            raise error
        if self._recovery is not None:
            state = self._settle((upload, offset))
            if state == UploadState.NOTHING:
                raise _BrokenUpload(error) from error
            return state == UploadState.COMPLETE
        try:
            has = get_json(self._gc, "file/offset", {"uploadId": upload})["offset"]
        except requests.HTTPError as e:
            if e.response is not None and e.response.status_code == 400:
                # Girder forgets an upload when its last byte makes it a file.
                if offset + length == self._size:
                    return True
                raise _BrokenUpload(error) from error
            raise
        if has == offset:
            return False
        self._drop(upload)
        raise _BrokenUpload(error) from error

    def _settle(self, begun: tuple[str, int] | None = None) -> UploadState:
        assert self._recovery is not None  # noqa: S101 - the callers checked it
        return self._recovery.settle(self._gc, self._upload_name, self._parent, begun)

    def _drop(self, upload: str) -> None:
        budget = RetryBudget(probe=health_probe(self._gc))
        while True:
            try:
                self._gc.delete(f"file/upload/{upload}")
                return
            except requests.RequestException as e:
                if e.response is not None and e.response.status_code == 400:
                    return  # an earlier request dropped it
                budget.wait(e)


def upload(
    gc: Any,
    parent: tuple[str, str],
    source: Path,
    options: Mapping[str, Any] | None = None,
    report: Report = lambda *_: None,
    recovery: UploadRecovery | None = None,
    job: Mapping[str, Any] | None = None,
) -> None:
    """Upload a file.

    In an item it replaces the file of the same name, if there is one. In a folder it becomes a new
    item, unless an earlier attempt of the job has left it there. Content that Girder has with the
    same checksum is not sent again.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``.
    parent
        The kind of the parent, ``'item'`` or ``'folder'``, and its id.
    source
        The file.
    options
        Any of ``filename``, ``mimeType``, ``reference`` and ``progressCallback``, as the
        methods of ``girder_client`` take them.
    report
        Called as bytes are sent.
    recovery
        The uploads of earlier attempts of the job.
    job
        The id and title of the job.

    Raises
    ------
    requests.RequestException
        If Girder refuses, or stays away for ``girder.worker.retry-time``.
    """
    _Upload(gc, parent, source, dict(options or {}), report, recovery, job).run()


def send_artifact(
    gc: Any,
    job_id: str,
    source: Path,
    name: str | None = None,
    report: Report = lambda *_: None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Attach a file to a job. It replaces the artifact of the same name.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``.
    job_id
        The id of the job.
    source
        The file.
    name
        The name of the artifact. By default that of the file.
    report
        Called as bytes are sent.
    headers
        What :func:`attempt_headers` returns.

    Raises
    ------
    requests.RequestException
        If Girder refuses, or stays away for ``girder.worker.retry-time``.
    """
    name, size = name or source.name, source.stat().st_size
    about = {"name": name, "size": size, "mimeType": mimetypes.guess_type(source)[0]}
    path = f"job/{job_id}/artifact?{urlencode({k: v for k, v in about.items() if v is not None})}"

    def send() -> None:
        with source.open("rb") as f:
            body = _FilePart(f, 0, size, lambda sent: report(sent, size, name)) if size else b""
            gc.post(path, data=body, headers=dict(headers or {}))

    retry(send, gc)
