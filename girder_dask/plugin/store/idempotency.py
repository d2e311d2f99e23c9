"""Idempotency keys of requests to start jobs, which clients repeat when the answer was lost.

Each job is marked with the key of its request and its place in the request. A unique index refuses
a second job with the same mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bson import ObjectId, json_util
from girder.exceptions import RestException
from girder_jobs.models.job import Job
from msgspec.structs import replace

from girder_dask.errors import GirderError
from girder_dask.plugin.store import models
from girder_dask.protocol.messages import MapParent, Submission

__all__ = ["REQUEST_FIELD", "IdempotencyKey", "ensure_index"]

#: The field of a job with its mark, which is also the name of the index.
REQUEST_FIELD = "dask_request"
# The field with the number of jobs of that request, the parent of a map included.
_SIZE_FIELD = "dask_request_size"

_KEY = re.compile("[0-9a-f]{32}")


def ensure_index() -> None:
    """Create the unique index over the marks."""
    exists = {REQUEST_FIELD: {"$exists": True}}
    Job().ensureIndex(
        (
            [(REQUEST_FIELD, 1)],
            {"name": REQUEST_FIELD, "unique": True, "partialFilterExpression": exists},
        )
    )


class IdempotencyKey:
    """The key of a request to start jobs that may be repeated.

    Parameters
    ----------
    key
        32 hexadecimal digits that the sender has chosen at random.
    sender
        The id of the user or the job that sends the request.
    """

    def __init__(self, key: Any, sender: ObjectId) -> None:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise RestException("The key of the request is not 32 hexadecimal digits.")
        self._sender = sender
        self._prefix = f"{sender}:{key}:"

    def mark(
        self, submissions: Sequence[Submission], group: MapParent | None
    ) -> tuple[list[Submission], MapParent | None]:
        """Return the calls and the parent job with their marks."""
        size = len(submissions) + (group is not None)
        calls = [self._mark(call, str(n), size) for n, call in enumerate(submissions)]
        return calls, None if group is None else self._mark(group, "group", size)

    def has_marked(self, job: Mapping[str, Any]) -> bool:
        """Return True if a request with this key has recorded a job."""
        return str(job.get(REQUEST_FIELD)).startswith(self._prefix)

    def marked_among(self, keys: Iterable[str], jobs: Iterable[Mapping[str, Any]]) -> set[ObjectId]:
        """Return the ids of the jobs that requests of the same sender with other keys recorded."""
        prefixes = {f"{self._sender}:{key}" for key in keys}
        return {
            job["_id"] for job in jobs if str(job.get(REQUEST_FIELD)).rpartition(":")[0] in prefixes
        }

    def _mark(self, call: Any, name: str, size: int) -> Any:
        mark = {REQUEST_FIELD: self._prefix + name, _SIZE_FIELD: size}
        return replace(call, other_fields={**call.other_fields, **mark})

    def find_jobs(
        self, submissions: Sequence[Submission], group: MapParent | None
    ) -> list[dict[str, Any]]:
        """Return the jobs that an earlier request with this key has recorded, the parent first.

        The list is empty if there are none.

        Raises
        ------
        GirderError
            If only some of the jobs exist, for example while they are being recorded.
        RestException
            If the key belongs to a request for another number of jobs.
        """
        names = [*(["group"] if group is not None else []), *map(str, range(len(submissions)))]
        marks = [self._prefix + name for name in names]
        found = {
            job[REQUEST_FIELD]: job
            for job in models.collection(Job()).find(
                {REQUEST_FIELD: {"$in": marks}}, {"log": False}
            )
        }
        for size in {job.get(_SIZE_FIELD, len(marks)) for job in found.values()}:
            if size != len(marks):
                raise RestException(
                    f"The key of this request belongs to an earlier request for {size:,} jobs, and "
                    f"this one is for {len(marks):,}. No job was created. Use a new key for "
                    "each request."
                )
        if found and len(found) < len(marks):
            raise GirderError(
                f"{len(found)} of {len(marks)} jobs of this request are recorded so far.",
                status=503,
            )
        jobs = [found[mark] for mark in marks if mark in found]
        for job in jobs:
            if isinstance(job.get("kwargs"), str):
                job["kwargs"] = json_util.loads(job["kwargs"])
        return jobs
