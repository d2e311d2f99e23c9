"""Writer of the log of one job, to the job document and to chunks.

The document contains the beginning of the log, as ``girder_jobs`` stores it, up to a limit. The
rest is in compressed chunks (:mod:`girder_dask.plugin.store.logs.chunks`). Its newest part, the
``tail``, stays in the document until it is large enough for a chunk. So text is added with the one
conditional write of the document, and a chunk counts only if the document names it.

This is pure computation on a job document.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from girder_dask import config
from girder_dask.protocol.log_limit import LOG_END_BYTES, gap_line, limit_line
from girder_dask.utils.text import clean_text

__all__ = ["LOG_FIELD", "MAX_DOCUMENT_LOG_BYTES", "LogWriter", "cut_line"]

#: The field of a job document about the part of its log that is in chunks.
LOG_FIELD = "dask_log"

#: The most bytes of a log in the job document. MongoDB allows 16 MiB for the whole document.
MAX_DOCUMENT_LOG_BYTES = 8 * 1024**2

#: The bytes that the database needs for an entry of a log besides its text.
_ENTRY_OVERHEAD_BYTES = 16

#: The least and the most bytes of a chunk, before compression.
_MIN_CHUNK_BYTES = 64 * 1024
_MAX_CHUNK_BYTES = 4 * 1024**2

#: The bytes a worker may send beyond ``girder.max-log``: the end of the output and the gap's note.
_SLACK_BYTES = 1024**2


def cut_line(job_id: Any) -> str:
    """Return the line that marks in the job document where the log was cut."""
    return (
        f"\n[Only the first {MAX_DOCUMENT_LOG_BYTES / 1024**2:g} MiB of this log, and its end when "
        f"the job has ended, are shown here. The whole log: GET dask/job/{job_id}/log, or "
        f"JobResult('{job_id}').log().]\n"
    )


class LogWriter:
    """The writer that appends text to the log of a job.

    Parameters
    ----------
    job_id
        The id of the job.
    dask
        The subdocument ``dask`` of the job, whose ``log_bytes`` is the size of the log in the
        document. It is changed.
    stored
        The field ``dask_log`` of the job, None for a log that is entirely in the document.

    Attributes
    ----------
    text
        The entries to append to the ``log`` of the job document.
    chunks
        Documents that must be stored before the job document names them.
    """

    def __init__(
        self, job_id: Any, dask: dict[str, Any], stored: Mapping[str, Any] | None = None
    ) -> None:
        self._job_id = job_id
        self._dask = dask
        self._stored = {"size": 0, "left_out": 0, "marked": False, "tail": b"", **(stored or {})}
        self._written: list[tuple[str, bool]] = []
        self._is_spilled = False
        self._begin()

    def _begin(self) -> None:
        self.text: list[str] = []
        self.chunks: list[dict[str, Any]] = []
        self._size: int = self._stored["size"]
        #: The bytes of text that were appended.
        self.nbytes = 0
        self._left_out: int = self._stored["left_out"]
        self._marked: bool = self._stored["marked"]
        self._tail: bytes = self._stored["tail"]

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.text or self._grown)

    @property
    def _grown(self) -> bool:
        return (self._size, self._left_out) != (self._stored["size"], self._stored["left_out"])

    def write(self, text: str, *, ends: bool = False) -> None:
        """Append text, up to the limit of logs.

        The last part of text that ends the job, such as a traceback, is always stored, also in the
        job document.
        """
        text = clean_text(text)
        if not text:
            return
        self._written.append((text, ends))
        data = text.encode()
        self.nbytes += len(data)
        used = self._dask.get("log_bytes", 0)
        if used + len(data) + _ENTRY_OVERHEAD_BYTES <= MAX_DOCUMENT_LOG_BYTES:
            self._dask["log_bytes"] = used + len(data) + _ENTRY_OVERHEAD_BYTES
            self.text.append(text)
            return
        if used <= MAX_DOCUMENT_LOG_BYTES:
            data = self._cut(data, MAX_DOCUMENT_LOG_BYTES - used - _ENTRY_OVERHEAD_BYTES)
        end = (self._tail + data)[-LOG_END_BYTES:]
        self._keep(data, ends=ends)
        if not self._is_spilled:
            self._show(end.decode("utf-8", "ignore") if ends else "")

    def _cut(self, data: bytes, fits: int) -> bytes:
        """Append the part that fits into the document, and return the rest."""
        head = data[: max(0, fits)].decode("utf-8", "ignore")
        if head:
            self.text.append(head)
        self._dask["log_bytes"] = MAX_DOCUMENT_LOG_BYTES + 1
        return data[len(head.encode()) :]

    def _show(self, end: str) -> None:
        """Append the cut line, once, and the end of the log to the job document."""
        if not self._marked:
            self._marked = True
            self.text.append(cut_line(self._job_id))
        if end:
            self.text.append(end)

    def _keep(self, data: bytes, *, ends: bool) -> None:
        most = config.nbytes("max-log")
        room = max(0, most + _SLACK_BYTES - MAX_DOCUMENT_LOG_BYTES - self._size)
        kept, rest = data[:room], data[room:]
        if rest:
            if not self._left_out:
                kept += limit_line(most).encode()
            self._left_out += len(rest)
            if ends:
                end = rest[-LOG_END_BYTES:]
                self._left_out -= len(end)
                kept += gap_line(self._left_out).encode() + end
        self._add(kept)

    def _add(self, data: bytes) -> None:
        self._size += len(data)
        self._tail += data
        if len(self._tail) < _MIN_CHUNK_BYTES and not self._is_spilled:
            return
        for start in range(0, len(self._tail), _MAX_CHUNK_BYTES):
            piece = self._tail[start : start + _MAX_CHUNK_BYTES]
            self.chunks.append(
                {
                    "_id": ObjectId(),
                    "job": self._job_id,
                    "size": len(piece),
                    "data": zlib.compress(piece, 1),
                }
            )
        self._tail = b""

    def spill(self) -> None:
        """Move everything that was appended into chunks, since the document can grow no further."""
        written, self._written = self._written, []
        self._is_spilled = True
        self._dask["log_bytes"] = MAX_DOCUMENT_LOG_BYTES + 1
        self._begin()
        for text, ends in written:
            self.write(text, ends=ends)

    def drop(self) -> None:
        """Discard everything that was appended."""
        self._written = []
        self._begin()

    def add_to(self, change: dict[str, Any]) -> None:
        """Add the appended text to an update of the job document."""
        if self.text:
            change.setdefault("$push", {})["log"] = {"$each": self.text}
        if self._grown:
            now = {
                "size": self._size,
                "left_out": self._left_out,
                "marked": self._marked,
                "tail": self._tail,
            }
            change["$set"].update({f"{LOG_FIELD}.{key}": value for key, value in now.items()})
        if self.chunks:
            names = [[chunk["_id"], chunk["size"]] for chunk in self.chunks]
            change.setdefault("$push", {})[f"{LOG_FIELD}.chunks"] = {"$each": names}
