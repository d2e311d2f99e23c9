"""One local file, put into Girder in pieces that are sent again when a connection breaks."""

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


_PIECE = 1 << 20


def attempt_headers(
    recovery: UploadRecovery | None, job: Mapping[str, Any] | None, upload: str | None = None
) -> dict[str, str]:
    """Return what a request says of the attempt that makes it, so that one that is over is refused.

    Parameters
    ----------
    recovery
        Those of the attempt. Without them there are no headers.
    job
        What ``ResultTransform.job`` is.
    upload
        The name of the upload. By default a new one.
    """
    if recovery is None:
        return {}
    named = {JOB_HEADER: str(job["_id"])} if job and job.get("_id") else {}
    return named | recovery.headers(upload or uuid.uuid4().hex)


class _Span:
    """A part of a file as the body of a request. It is read while it is sent."""

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
        # One buffer for all pieces. In a worker of Dask the memory of each new one would come
        # from the system and go back to it, which takes longer than to read and to send it.
        buffer = memoryview(bytearray(min(self._size, _PIECE)))
        self._source.seek(self._offset)
        left = self._size
        while left and (count := self._source.readinto(buffer[: min(left, _PIECE)])):
            left -= count
            yield buffer[:count]
            self._sent(self._offset + self._size - left)


class _Broken(Exception):
    """Girder may have a part of a piece, so the upload has to begin anew."""

    def __init__(self, error: requests.RequestException) -> None:
        super().__init__(str(error))
        self.error = error


class _Upload:
    """A file on its way into an item or a folder."""

    def __init__(
        self,
        gc: Any,
        parent: tuple[str, str],
        source: Path,
        options: dict[str, Any],
        tell: Report,
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
            raise TypeError(f"upload_kwargs has {', '.join(options)}, which uploads do not take")
        self._tell = tell
        self._recovery = recovery
        # The same for each time that it begins anew, so that Girder knows what was left of it.
        self._own_name = uuid.uuid4().hex
        self._headers = attempt_headers(recovery, job, self._own_name)
        self._size = source.stat().st_size

    def run(self) -> None:
        """Send it. An upload that broke within a piece begins anew."""
        replaced = self._file_to_replace()
        if replaced is not None and self._is_there(replaced):
            return
        patience = RetryBudget(probe=health_probe(self._gc))
        while True:
            document = self._begin(replaced)
            if self._size == 0:
                return  # an empty file is complete when it is begun
            try:
                self._send(str(document["_id"]), patience)
                return
            except _Broken as e:
                patience.wait(e.error)

    def _file_to_replace(self) -> Mapping[str, Any] | None:
        """Return the file of this name in the item, or of an earlier attempt in the folder.

        Else each upload into a folder is a new item.
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

    def _is_there(self, file: Mapping[str, Any]) -> bool:
        if file.get("size") != self._size or not file.get("sha512"):
            return False
        with self._source.open("rb") as f:
            digest = hashlib.sha512()
            while piece := f.read(_PIECE):
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
        patience = RetryBudget(probe=health_probe(self._gc))
        while True:
            try:
                return dict(
                    self._gc.sendRestRequest(method, path, parameters, headers=self._headers)
                )
            except requests.RequestException as e:
                # An empty file that was made must not be made twice.
                may_be_made = self._size == 0 and not is_unsent(e)
                if may_be_made and self._recovery is None:
                    raise
                patience.wait(e)
                if may_be_made and self._settle() == UploadState.COMPLETE:
                    return {}

    def _send(self, upload: str, patience: RetryBudget) -> None:
        offset = 0
        with self._source.open("rb") as source:
            while offset < self._size:
                span = _Span(
                    source, offset, min(self._gc.MAX_CHUNK_SIZE, self._size - offset), self._sent
                )
                try:
                    chunk = f"file/chunk?offset={offset}&uploadId={upload}"
                    self._gc.post(chunk, data=span, headers=self._headers)
                except requests.RequestException as e:
                    if self._arrived(upload, offset, len(span), e):
                        return
                    patience.wait(e)
                    continue
                offset += len(span)
                patience.progress()
                if callable(self._callback):
                    self._callback({"current": offset, "total": self._size})

    def _sent(self, count: int) -> None:
        self._tell(count, self._size, self._name)

    def _arrived(
        self, upload: str, offset: int, length: int, error: requests.RequestException
    ) -> bool:
        """Say whether the upload is complete although a request failed; if not, go on.

        Girder resumes wrongly what broke within a piece: it takes the bytes that it has, but
        leaves them out of the checksum. So such an upload is thrown away.
        """
        if is_unsent(error):
            return False
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status < 500:
            raise error
        if self._recovery is not None:
            state = self._settle((upload, offset))
            if state == UploadState.NOTHING:
                raise _Broken(error) from error
            return state == UploadState.COMPLETE
        try:
            has = get_json(self._gc, "file/offset", {"uploadId": upload})["offset"]
        except requests.HTTPError as e:
            if e.response is not None and e.response.status_code == 400:
                # It knows the upload no more: it became a file with the last byte.
                if offset + length == self._size:
                    return True
                raise _Broken(error) from error
            raise
        if has == offset:
            return False
        self._drop(upload)
        raise _Broken(error) from error

    def _settle(self, begun: tuple[str, int] | None = None) -> UploadState:
        assert self._recovery is not None  # noqa: S101 - it was asked for above
        return self._recovery.settle(self._gc, self._own_name, self._parent, begun)

    def _drop(self, upload: str) -> None:
        patience = RetryBudget(probe=health_probe(self._gc))
        while True:
            try:
                self._gc.delete(f"file/upload/{upload}")
                return
            except requests.RequestException as e:
                if e.response is not None and e.response.status_code == 400:
                    return  # a request before has dropped it
                patience.wait(e)


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

    In an item it replaces the file of its name, if there is one. In a folder it becomes a new
    item, unless an earlier attempt of the job has left it there. What Girder has with the same
    checksum is not sent.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``.
    parent
        What it is put into: ``'item'`` or ``'folder'``, and its id.
    source
        The file.
    options
        Any of ``filename``, ``mimeType``, ``reference`` and ``progressCallback``, as the
        methods of ``girder_client`` take them.
    report
        Called with the bytes that are sent, all bytes and the name.
    recovery
        What earlier attempts of the job have left.
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
    """Attach a file to a job, in place of what it has of that name.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``.
    job_id
        The id of the job.
    source
        The file.
    name
        What it is called there; by default as here.
    report
        Called with the bytes that are sent, all bytes and the name.
    headers
        What :func:`attempt_headers` returns.

    Raises
    ------
    requests.RequestException
        If Girder refuses, or stays away for ``girder.worker.retry-time``.
    """
    shown, size = name or source.name, source.stat().st_size
    about = {"name": shown, "size": size, "mimeType": mimetypes.guess_type(source)[0]}
    path = f"job/{job_id}/artifact?{urlencode({k: v for k, v in about.items() if v is not None})}"
    patience = RetryBudget(probe=health_probe(gc))
    while True:
        with source.open("rb") as f:
            body = _Span(f, 0, size, lambda sent: report(sent, size, shown)) if size else b""
            try:
                gc.post(path, data=body, headers=dict(headers or {}))
                return
            except requests.RequestException as e:
                patience.wait(e)
