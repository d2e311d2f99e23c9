"""Chunks of logs that are outside the job documents, and reading of whole logs.

:mod:`girder_dask.plugin.store.logs.writer` divides the logs.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job

from girder_dask.plugin.store import models
from girder_dask.plugin.store.database import insert
from girder_dask.plugin.store.logs.writer import LOG_FIELD, cut_line
from girder_dask.plugin.store.validation import MalformedDocument, check_log

__all__ = ["WholeLog", "delete", "delete_unnamed", "load", "store"]

logger = logging.getLogger(__name__)

#: The most bytes that are yielded at once, since there may be many slow readers.
_READ_BYTES = 256 * 1024


def store(chunks: Sequence[Mapping[str, Any]]) -> None:
    """Store chunks before job documents name them."""
    insert(models.DaskLog().collection, chunks)


def delete_unnamed(chunks: Iterable[Mapping[str, Any]]) -> None:
    """Delete those chunks that no job document names after its write."""
    jobs = {chunk["_id"]: chunk["job"] for chunk in chunks}
    if not jobs:
        return
    found = models.collection(Job()).find(
        {"_id": {"$in": list(set(jobs.values()))}}, {f"{LOG_FIELD}.chunks": True}
    )
    named = {chunk_id for job in found for chunk_id, _ in _beside(job).get("chunks") or ()}
    models.DaskLog().collection.delete_many({"_id": {"$in": list(jobs.keys() - named)}})


def delete(job_ids: Sequence[ObjectId]) -> None:
    """Delete all chunks of jobs."""
    models.DaskLog().collection.delete_many({"job": {"$in": list(job_ids)}})


@dataclass(frozen=True, slots=True)
class WholeLog:
    """A snapshot of everything stored of a log.

    ``parts`` are pairs of a size and a function that returns as many bytes, or None if they were
    deleted.
    """

    parts: Sequence[tuple[int, Callable[[], bytes | None]]]

    @property
    def size(self) -> int:
        """The size of the log in bytes of UTF-8."""
        return sum(size for size, _ in self.parts)

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``end``, a piece at a time."""
        end = self.size if end is None else end
        position = 0
        for size, get in self.parts:
            first, last = max(start - position, 0), min(end - position, size)
            position += size
            if first >= last:
                continue
            data = get()
            if data is None:  # the job was deleted meanwhile
                return
            for offset in range(first, last, _READ_BYTES):
                yield data[offset : min(offset + _READ_BYTES, last)]


def load(job_id: ObjectId) -> WholeLog:
    """Return the log of a job, which is empty if there is no such job."""
    job = models.collection(Job()).find_one({"_id": job_id}, {"log": True, LOG_FIELD: True}) or {}
    parts = [_whole(piece) for piece in _head(job)]
    beside = _beside(job)
    parts += [(size, partial(_chunk, chunk)) for chunk, size in beside.get("chunks") or ()]
    return WholeLog([*parts, _whole(beside.get("tail") or b"")])


def _head(job: Mapping[str, Any]) -> Iterator[bytes]:
    log = job.get("log") or []
    cut = cut_line(job.get("_id")) if LOG_FIELD in job else None
    for piece in log if isinstance(log, list) else [log]:
        if piece == cut:
            return
        yield str(piece).encode()


def _beside(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field of a job about its chunks, empty if that is malformed."""
    beside = job.get(LOG_FIELD)
    try:
        check_log(job["_id"], beside)
    except MalformedDocument as e:
        if beside is not None:
            logger.warning("The chunks of the log of a job are ignored: %s", e)
        return {}
    return dict(beside or {})


def _whole(data: bytes) -> tuple[int, Callable[[], bytes | None]]:
    return len(data), lambda: data


def _chunk(chunk_id: ObjectId) -> bytes | None:
    found = models.collection(models.DaskLog()).find_one({"_id": chunk_id}, {"data": True})
    return None if found is None else zlib.decompress(found["data"])
