"""One file of Girder, streamed to disk, whole and unchanged or not at all."""

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

# What has come of a piece is lost when the connection breaks. The memory of one of 128 KiB would
# come from the system each time: M_MMAP_THRESHOLD of mallopt(3), which stays so in Dask's workers.
_PIECE = 124 << 10
# Seconds for which a host is asked again that any user may have named.
_LINK_TIME = 30.0
# Answers without a byte, after which Girder is taken to have no more of a file.
_MOST_EMPTY = 4
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Report = Callable[[int, int | None, str], None]


class FileChanged(Exception):
    """The file changed in Girder while it was fetched. ``file`` is its document now."""

    def __init__(self, file: Mapping[str, Any]) -> None:
        super().__init__(f"{file['name']} changed")
        self.file = file


class DiskFull(TransformError):
    """The disk has no room for a file. Nothing of it is left there."""


def content_version(file: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what changes in the document of a file when its content does.

    ``created`` is the time of the last upload into the file; see ``finalizeUpload`` of
    Girder's upload model. ``linkUrl`` is where a file is that Girder does not have itself.
    """
    return tuple(file.get(k) for k in ("_id", "size", "created", "sha512", "linkUrl"))


def download(gc: Any, file: Mapping[str, Any], path: Path, report: Report) -> None:
    """Write the content of a file.

    A broken connection is resumed where it broke. Size and checksum are those of the
    document, where it has them.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``.
    file
        The document of the file.
    path
        Where it is written to. On failure nothing is left there.
    report
        Called with the bytes that have come, all bytes (None if unknown) and the name.

    Raises
    ------
    FileChanged
        If it is another file meanwhile.
    DiskFull
        If the disk is full.
    TransformError
        If what comes is not what the document says.
    requests.RequestException
        If Girder refuses, or stays away.
    """
    try:
        for last in (False, True):
            fetched = _Fetch(gc, file, path, report).run()
            if fetched.is_right():
                break
            if last:
                raise TransformError(fetched.complaint(), permanent=True)
    except OSError as e:
        path.unlink(missing_ok=True)
        if e.errno not in _NO_ROOM:
            raise
        raise DiskFull(
            f"The disk of the worker is full: there was no room for {file['name']} "
            f"({_bytes(file.get('size'))}). Ask the operator for space, or use a smaller file."
        ) from e
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _bytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size:,} bytes"


class _Fetch:
    """One go at a file, over as many connections as it takes."""

    def __init__(self, gc: Any, file: Mapping[str, Any], path: Path, report: Report) -> None:
        self._gc = gc
        self._file = file
        self._path = path
        self._report = report
        self._offset = 0
        # The host that has the file, and whether a link leads there; None is Girder.
        self._elsewhere: tuple[str, str] | None = None
        self._digest = hashlib.sha512()
        self._patience = RetryBudget(probe=health_probe(gc))
        self._link_patience = RetryBudget(min(config.seconds("worker.retry-time"), _LINK_TIME))
        self._empty = 0

    def run(self) -> _Fetch:
        """Fetch all there is."""
        with self._path.open("wb") as out:
            while True:
                before = self._offset
                try:
                    self._receive(out)
                    return self
                except requests.exceptions.ChunkedEncodingError as e:
                    self._empty = self._empty + 1 if self._offset == before else 0
                    self._wait(e)
                except requests.RequestException as e:
                    self._empty = 0
                    self._wait(e)

    def _wait(self, error: requests.RequestException) -> None:
        if self._empty >= _MOST_EMPTY and not self._is_link:
            raise TransformError(
                f"{self._file['name']} has {_bytes(self._file.get('size'))} in Girder, but what "
                "comes breaks off before that, each time at the same place. It is shorter where "
                "Girder keeps it: ask Girder's operator, or upload the file again.",
                permanent=True,
            )
        if self._elsewhere is not None and not isinstance(error, ExplainedRequestError):
            error = StorageServerError(self._elsewhere[0], error, self._elsewhere[1])
        patience = self._link_patience if self._is_link else self._patience
        try:
            patience.wait(error)
        except StorageServerError as e:
            raise e from None  # what it comes of shows the address

    @property
    def _is_link(self) -> bool:
        return self._elsewhere is not None and self._elsewhere[1] == LINK

    def is_right(self) -> bool:
        """Say whether what has come is what the document says.

        Raises
        ------
        FileChanged
            If the document has changed meanwhile.
        """
        right = self._file.get("size") in (None, self._offset)
        if self._file.get("sha512"):
            right = right and self._digest.hexdigest() == self._file["sha512"]
            if right:
                return True
        now = get_json(self._gc, f"file/{self._file['_id']}")
        if content_version(now) != content_version(self._file):
            raise FileChanged(now)
        return right

    def complaint(self) -> str:
        """Say in what it is wrong."""
        name, size = self._file["name"], self._file.get("size")
        if size not in (None, self._offset):
            wrong = f"has {size} bytes in Girder, but {self._offset} arrived"
        else:
            wrong = "is not what was put into Girder: its checksum differs"
        return (
            f"{name} {wrong}. Start the job again; if it stays so, the file is broken there and "
            "has to be uploaded again."
        )

    def _receive(self, out: Any) -> None:
        size = self._file.get("size")
        if self._offset and self._offset == size:
            return
        headers = {"Accept-Encoding": "identity"}
        if self._offset and not self._is_link:  # which may be another file by now
            headers["Range"] = f"bytes={self._offset}-"
        with self._open(headers) as response:
            if _first_byte(response) != self._offset:
                self._start_again(out)
            for piece in response.iter_content(_PIECE):
                out.write(piece)
                self._digest.update(piece)
                self._offset += len(piece)
                self._note(size)
                if size is not None and self._offset > size:
                    return  # it has changed; do not fill the disk

    def _note(self, size: int | None) -> None:
        """Take note of what has come."""
        if not self._is_link:
            self._patience.progress()
        elif is_too_large(self._offset):
            raise LinkRefused(
                f"The file is a link to {self._elsewhere and self._elsewhere[0]}, which sends more "
                "bytes than are fetched of a link. Upload the file to Girder, or ask the operator "
                "(girder.worker.link-size)."
            )
        self._report(self._offset, size, str(self._file["name"]))

    def _start_again(self, out: Any) -> None:
        out.seek(0)
        out.truncate()
        self._offset = 0
        self._digest = hashlib.sha512()

    def _open(self, headers: dict[str, str]) -> requests.Response:
        """Begin a download, following redirects without giving the token to strangers."""
        self._elsewhere = None
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
        self._elsewhere = storage_host(response)
        if self._is_link and not self._file.get("linkUrl"):
            response.close()
            self._refuse_new_link()
        session = getattr(self._gc, "_session", None)
        return follow_download(response, session, stream=True, timeout=TIMEOUT_S)

    def _refuse_new_link(self) -> None:
        """Begin anew with a file that has become a link, which no cache may keep."""
        now = get_json(self._gc, f"file/{self._file['_id']}")
        if now.get("linkUrl"):
            raise FileChanged(now)
        raise TransformError(
            f"{self._file['name']} is a link, of which Girder tells nothing. Is the girder_dask "
            "in Girder another one than here?"
        )


def _first_byte(response: requests.Response) -> int:
    """Return where in the file an answer begins. Girder's own status tells nothing of it."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else 0
