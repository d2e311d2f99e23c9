"""Models and indices of the records, calls and logs stored beside job documents.

``dask_job`` has one document for each job, with the same id: how to run the job, the id of its
token, its pickled call if that is small, and its outcome if that is large
(:mod:`girder_dask.plugin.store.results`). Larger calls are in ``dask_payload``, in pieces, since a
document of MongoDB has at most 16 MiB. Long logs are in ``dask_log``
(:mod:`girder_dask.plugin.store.logs`). No REST route serves these collections directly.
"""

from __future__ import annotations

from typing import Any

from girder.models.model_base import Model
from girder_jobs.models.job import Job
from pymongo import ReadPreference

from girder_dask.plugin.store import tokens

__all__ = [
    "CHILDREN_INDEX",
    "CHUNK_BYTES",
    "CLAIM_INDEX",
    "INLINE_BYTES",
    "MAP_PARENT_INDEX",
    "OPEN_INDEX",
    "REMIND_INDEX",
    "REMOVED_INDEX",
    "TOKEN_INDEX",
    "UNREACHED_INDEX",
    "DaskJob",
    "DaskLog",
    "DaskPayload",
    "collection",
    "ensure_indices",
]

#: The most bytes of a pickled call that is stored in ``dask_job``.
INLINE_BYTES = 16 * 1024

#: The most bytes in one document of ``dask_payload``.
CHUNK_BYTES = 8 * 1024**2

#: The names of the indices over jobs that are unfinished, that were canceled, that were claimed
#: and not yet acknowledged, and that show an unreachable scheduler. Each contains only these jobs,
#: so that it stays small however many jobs exist.
OPEN_INDEX = "dask_open"
REMIND_INDEX = "dask_remind"
CLAIM_INDEX = "dask_claimed"
UNREACHED_INDEX = "dask_unreached"

#: The index over the jobs that other jobs have started, by parent and state.
CHILDREN_INDEX = "dask_children"

#: The index over the unfinished parents of maps.
MAP_PARENT_INDEX = "dask_groups"

#: The index over the tokens that belong to a job.
TOKEN_INDEX = "dask_token"  # noqa: S105

#: The index over the jobs that were deleted before they had ended.
REMOVED_INDEX = "dask_removed"


class DaskJob(Model):
    """The record of a job: how to run it, and its outcome; ``_id`` is the id of the job."""

    def initialize(self) -> None:
        """Name the collection and its index."""
        self.name = "dask_job"
        self.ensureIndex(
            (
                [("token", 1)],
                {"name": TOKEN_INDEX, "partialFilterExpression": {"own_token": True}},
            )
        )
        self.ensureIndex(([("removed", 1)], {"name": REMOVED_INDEX, "sparse": True}))

    def validate(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Accept the document: only this package writes such documents."""
        return doc


class DaskPayload(Model):
    """A piece of the pickled call of a job: ``{job, n, data}``."""

    def initialize(self) -> None:
        """Name the collection and its index."""
        self.name = "dask_payload"
        self.ensureIndex(([("job", 1), ("n", 1)], {"unique": True}))

    def validate(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Accept the document: only this package writes such documents."""
        return doc


class DaskLog(Model):
    """A part of the log of a job: ``{job, size, data}``, compressed with zlib."""

    def initialize(self) -> None:
        """Name the collection and its index."""
        self.name = "dask_log"
        self.ensureIndex("job")

    def validate(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Accept the document: only this package writes such documents."""
        return doc


def collection(model: Any) -> Any:
    """Return the collection of a model, read from the primary.

    Girder prefers secondaries, which may not have the updates yet that this process has made. No
    decision may depend on them.
    """
    return model.collection.with_options(read_preference=ReadPreference.PRIMARY)


def ensure_indices() -> None:
    """Create the indices that serve every query of this plugin about jobs."""
    Job().ensureIndex(
        (
            [("dask.scheduler", 1), ("status", 1), ("created", 1)],
            {"name": OPEN_INDEX, "partialFilterExpression": {"dask.open": True}},
        )
    )
    Job().ensureIndex(
        (
            [("dask.scheduler", 1), ("status", 1)],
            {"name": REMIND_INDEX, "partialFilterExpression": {"dask.remind": True}},
        )
    )
    Job().ensureIndex(
        (
            [("dask.claimed", 1)],
            {"name": CLAIM_INDEX, "partialFilterExpression": {"dask.claimed": {"$exists": True}}},
        )
    )
    Job().ensureIndex(
        (
            [("dask.scheduler", 1)],
            {"name": UNREACHED_INDEX, "partialFilterExpression": {"dask.unreached": True}},
        )
    )
    Job().ensureIndex(
        (
            [("updated", 1)],
            {"name": MAP_PARENT_INDEX, "partialFilterExpression": {"dask.group.open": True}},
        )
    )
    Job().ensureIndex(([("parentId", 1), ("status", 1)], {"name": CHILDREN_INDEX}))
    DaskJob()
    DaskPayload()
    DaskLog()
    tokens.ensure_index()
