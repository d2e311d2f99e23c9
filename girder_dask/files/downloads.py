"""The download of one file: streamed to disk, complete and unchanged or not at all."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests

from girder_dask import config
from girder_dask.errors import TransformError
from girder_dask.http.links import follow_download, is_too_large, storage_host
from girder_dask.http.redirects import (
    LINK,
    ExplainedRequestError,
    LinkRefused,
    StorageServerError,
    redirect_kind,
    refuse_redirect,
)
from girder_dask.http.retry import TIMEOUT_S, RetryBudget, get_json, health_probe

__all__ = ["DiskFull", "FileChanged", "content_version", "download"]

# A piece that is incomplete when the connection breaks is lost. From 128 KiB on, the memory of each
# piece would be mapped anew: M_MMAP_THRESHOLD of mallopt(3), which is fixed in Dask's workers.
_PIECE_BYTES = 124 << 10
# For a host that any user may have named. Retries to an unavailable Girder last much longer.
_LINK_RETRY_TIME_S = 30.0
# After this number of empty answers, the file is taken to be shorter than Girder says.
_MAX_EMPTY_ANSWERS = 4
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

#: Called with the bytes done, all bytes (None if unknown) and the name of a file.
Report = Callable[[int, int | None, str], None]


class FileChanged(Exception):
    """A file changed in Girder while it was fetched. ``file`` is its new document."""

    def __init__(self, file: Mapping[str, Any]) -> None:
        super().__init__(f"{file['name']} changed")
        self.file = file


class DiskFull(TransformError):
    """The disk has no room for a file. The part that was written is removed."""


def content_version(file: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields of a file's document that change with its content.

    ``created`` is the time of the last upload into the file; see ``finalizeUpload`` of Girder's
    upload model. ``linkUrl`` is the address of a file that Girder does not keep itself.
    """
    return tuple(file.get(k) for k in ("_id", "size", "created", "sha512", "linkUrl"))


def download(gc: Any, file: Mapping[str, Any], path: Path, report: Report) -> None:
    """Write the content of a file.

    A download resumes where its connection broke. Size and checksum are compared with the
    document, where it has them.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``.
    file
        The document of the file.
    path
        The local path. It does not exist after a failure.
    report
        Called as bytes arrive.

    Raises
    ------
    FileChanged
        If the file changed meanwhile.
    DiskFull
        If the disk is full.
    TransformError
        If the content is not what the document says.
    requests.RequestException
        If Girder refuses, or stays away.
    """
    try:
        for is_last in (False, True):
            fetched = _Download(gc, file, path, report).run()
            if fetched.is_valid():
                break
            if is_last:
                raise TransformError(fetched.describe_difference(), permanent=True)
    except OSError as e:
        path.unlink(missing_ok=True)
        if e.errno not in _DISK_FULL:
            raise
        raise DiskFull(
            f"The disk of the worker is full: there was no room for {file['name']} "
            f"({_size_text(file)}). Ask the operator for space, or use a smaller file."
        ) from e
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _size_text(file: Mapping[str, Any]) -> str:
    size = file.get("size")
    return "of unknown size" if size is None else f"{size:,} bytes"


class _Download:
    """One download of a file, over as many connections as needed."""

    def __init__(self, gc: Any, file: Mapping[str, Any], path: Path, report: Report) -> None:
        self._gc = gc
        self._file = file
        self._path = path
        self._report = report
        self._offset = 0
        # The host that sends the content and the kind of redirect that leads there; None is Girder.
        self._storage: tuple[str, str] | None = None
        self._digest = hashlib.sha512()
        self._budget = RetryBudget(probe=health_probe(gc))
        self._link_budget = RetryBudget(
            min(config.seconds("worker.retry-time"), _LINK_RETRY_TIME_S)
        )
        self._empty_answers = 0

    def run(self) -> _Download:
        """Fetch until the end of the content."""
        with self._path.open("wb") as out:
            while True:
                before = self._offset
                try:
                    self._receive(out)
                    return self
                except requests.exceptions.ChunkedEncodingError as e:
                    self._empty_answers = self._empty_answers + 1 if self._offset == before else 0
                    self._wait(e)
                except requests.RequestException as e:
                    self._empty_answers = 0
                    self._wait(e)

    def _wait(self, error: requests.RequestException) -> None:
        if self._empty_answers >= _MAX_EMPTY_ANSWERS and not self._is_link:
            raise TransformError(
                f"{self._file['name']} has {_size_text(self._file)} in Girder, but every "
                "download ends early, at the same place. The stored file is shorter than "
                "recorded: ask Girder's operator, or upload the file again.",
                permanent=True,
            )
        if self._storage is not None and not isinstance(error, ExplainedRequestError):
            error = StorageServerError(self._storage[0], error, self._storage[1])
        budget = self._link_budget if self._is_link else self._budget
        try:
            budget.wait(error)
        except StorageServerError as e:
            raise e from None  # its cause shows the address, which may be signed

    @property
    def _is_link(self) -> bool:
        return self._storage is not None and self._storage[1] == LINK

    def is_valid(self) -> bool:
        """Return True if the content is what the document says.

        Raises
        ------
        FileChanged
            If the document has changed meanwhile.
        """
        is_valid = self._file.get("size") in (None, self._offset)
        if self._file.get("sha512"):
            is_valid = is_valid and self._digest.hexdigest() == self._file["sha512"]
            if is_valid:
                return True
        now = get_json(self._gc, f"file/{self._file['_id']}")
        if content_version(now) != content_version(self._file):
            raise FileChanged(now)
        return is_valid

    def describe_difference(self) -> str:
        """Return how the content differs from the document, as a message to the user."""
        name, size = self._file["name"], self._file.get("size")
        if size not in (None, self._offset):
            difference = f"has {size} bytes in Girder, but {self._offset} arrived"
        else:
            difference = "differs from the file that was uploaded: its checksum is different"
        return (
            f"{name} {difference}. Start the job again; if that does not help, the file is broken "
            "in Girder and has to be uploaded again."
        )

    def _receive(self, out: Any) -> None:
        size = self._file.get("size")
        if self._offset and self._offset == size:
            return
        headers = {"Accept-Encoding": "identity"}
        if self._offset and not self._is_link:  # its target may be another file by now
            headers["Range"] = f"bytes={self._offset}-"
        with self._open(headers) as response:
            if _first_byte(response) != self._offset:
                self._restart(out)
            for piece in response.iter_content(_PIECE_BYTES):
                out.write(piece)
                self._digest.update(piece)
                self._offset += len(piece)
                self._progress(size)
                if size is not None and self._offset > size:
                    return  # the file has changed; more bytes would only fill the disk

    def _progress(self, size: int | None) -> None:
        """Record and report the bytes that have arrived."""
        if not self._is_link:
            self._budget.progress()
        elif is_too_large(self._offset):
            raise LinkRefused(
                f"The file is a link to {self._storage and self._storage[0]}, which sends more "
                "bytes than workers fetch from a link. Upload the file to Girder, or ask the "
                "operator (girder.worker.link-size)."
            )
        self._report(self._offset, size, str(self._file["name"]))

    def _restart(self, out: Any) -> None:
        out.seek(0)
        out.truncate()
        self._offset = 0
        self._digest = hashlib.sha512()

    def _open(self, headers: dict[str, str]) -> requests.Response:
        """Begin a download. Redirects are followed without the token."""
        self._storage = None
        response: requests.Response = self._gc.sendRestRequest(
            "GET",
            f"file/{self._file['_id']}/download",
            headers=headers,
            jsonResp=False,
            stream=True,
            timeout=TIMEOUT_S,
            allow_redirects=False,
        )
        if redirect_kind(response) is None:
            refuse_redirect(response)
            return response
        self._storage = storage_host(response)
        if self._is_link and not self._file.get("linkUrl"):
            response.close()
            self._refuse_new_link()
        session = getattr(self._gc, "_session", None)
        return follow_download(response, session, stream=True, timeout=TIMEOUT_S)

    def _refuse_new_link(self) -> None:
        """Raise FileChanged for a file that has become a link, which no cache may keep."""
        now = get_json(self._gc, f"file/{self._file['_id']}")
        if now.get("linkUrl"):
            raise FileChanged(now)
        raise TransformError(
            f"{self._file['name']} is a link, but Girder does not say so. Is the girder_dask in "
            "Girder another version than on the worker?"
        )


def _first_byte(response: requests.Response) -> int:
    """Return the offset of an answer in the file. Girder answers 200 for a part of it too."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else 0
