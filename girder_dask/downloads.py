"""One file of Girder, streamed to disk, whole and unchanged or not at all."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from girder_dask.errors import TransformError
from girder_dask.patience import TIMEOUT, Elsewhere, Patience, ask

__all__ = ["DiskFull", "FileChanged", "download", "version"]

# What has come of a piece is lost when the connection breaks. The memory of one of 128 KiB would
# come from the system each time: M_MMAP_THRESHOLD of mallopt(3), which stays so in Dask's workers.
_PIECE = 124 << 10
_MOST_REDIRECTS = 5
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Report = Callable[[int, int | None, str], None]


class FileChanged(Exception):
    """The file changed in Girder while it was fetched. ``file`` is its document now."""

    def __init__(self, file: Mapping[str, Any]) -> None:
        super().__init__(f"{file['name']} changed")
        self.file = file


class DiskFull(TransformError):
    """The disk has no room for a file. Nothing of it is left there."""


def version(file: Mapping[str, Any]) -> tuple[Any, ...]:
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
                raise TransformError(fetched.complaint())
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
        self._elsewhere: str | None = None
        self._digest = hashlib.sha512()

    def run(self) -> _Fetch:
        """Fetch all there is."""
        patience = Patience()
        with self._path.open("wb") as out:
            while True:
                try:
                    self._receive(out, patience)
                    return self
                except requests.RequestException as e:
                    self._wait(patience, e)

    def _wait(self, patience: Patience, error: requests.RequestException) -> None:
        try:
            patience.wait(error)
        except requests.RequestException:
            if self._elsewhere is None:
                raise
            raise Elsewhere(self._elsewhere, error) from None  # the error shows the address

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
        now = ask(self._gc, f"file/{self._file['_id']}")
        if version(now) != version(self._file):
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

    def _receive(self, out: Any, patience: Patience) -> None:
        size = self._file.get("size")
        if self._offset and self._offset == size:
            return
        headers = {"Accept-Encoding": "identity"}
        if self._offset:
            headers["Range"] = f"bytes={self._offset}-"
        with self._open(headers) as response:
            if _first_byte(response) != self._offset:
                self._start_again(out)
            for piece in response.iter_content(_PIECE):
                out.write(piece)
                self._digest.update(piece)
                self._offset += len(piece)
                patience.progress()
                self._report(self._offset, size, str(self._file["name"]))
                if size is not None and self._offset > size:
                    return  # it has changed; do not fill the disk

    def _start_again(self, out: Any) -> None:
        out.seek(0)
        out.truncate()
        self._offset = 0
        self._digest = hashlib.sha512()

    def _open(self, headers: dict[str, str]) -> requests.Response:
        """Begin a download, following redirects without giving the token to strangers."""
        options: dict[str, Any] = {"stream": True, "timeout": TIMEOUT, "allow_redirects": False}
        path = f"file/{self._file['_id']}/download"
        self._elsewhere = None
        response: requests.Response = self._gc.sendRestRequest(
            "GET", path, headers=headers, jsonResp=False, **options
        )
        for _ in range(_MOST_REDIRECTS):
            if not response.is_redirect:
                return response
            response.close()
            url = urljoin(response.url, response.headers["Location"])
            here = self._elsewhere is None and _same_site(url, response.url)
            more = {"Girder-Token": self._gc.token} if here else {}
            self._elsewhere = None if here else str(urlsplit(url).hostname)
            response = requests.get(url, headers={**headers, **more}, **options)  # noqa: S113
            if not response.ok:
                # Not in the words of requests, which show the address with what signs it.
                raise requests.HTTPError("the place of the file refused", response=response)
        raise requests.TooManyRedirects(f"file {self._file['_id']}")


def _same_site(url: str, other: str) -> bool:
    return urlsplit(url)[:2] == urlsplit(other)[:2]


def _first_byte(response: requests.Response) -> int:
    """Return where in the file an answer begins. Girder's own status tells nothing of it."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else 0
