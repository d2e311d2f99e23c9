"""What is kept of a job besides its job document.

``dask_job`` holds one document a job, with the same id: how to run it, the id of its
token, the pickled call if that is small, and in the end what came of it, if that is large
(:mod:`girder_dask.plugin.store.results`). A larger call is in ``dask_payload``, in pieces, because
a MongoDB document holds 16 MiB at most. Neither is reachable through REST.
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

#: The most bytes of a pickled call that is kept in the document of its job.
INLINE_BYTES = 16 * 1024

#: The most bytes in one document of ``dask_payload``.
CHUNK_BYTES = 8 * 1024**2

#: The names of the indices on jobs: over the unfinished ones, over those that were canceled,
#: over those that were handed over and not yet acknowledged, and over those that say that no
#: scheduler is reached. Each holds these alone, so
#: that it stays small however many jobs there were.
OPEN_INDEX = "dask_open"
REMIND_INDEX = "dask_remind"
CLAIM_INDEX = "dask_claimed"
UNREACHED_INDEX = "dask_unreached"

#: The index over the jobs that another one has started, by their states.
CHILDREN_INDEX = "dask_children"

#: The index over the parents of maps that have not ended.
MAP_PARENT_INDEX = "dask_groups"

#: The index over the tokens that belong to a job.
TOKEN_INDEX = "dask_token"  # noqa: S105

#: The index over the jobs that were deleted before they had ended.
REMOVED_INDEX = "dask_removed"


class DaskJob(Model):
    """How to run a job, and what came of it; ``_id`` is the id of the job."""

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
        """Accept the document: only this package writes it."""
        return doc


class DaskPayload(Model):
    """A piece of the pickled call of a job: ``{job, n, data}``."""

    def initialize(self) -> None:
        """Name the collection and its index."""
        self.name = "dask_payload"
        self.ensureIndex(([("job", 1), ("n", 1)], {"unique": True}))

    def validate(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Accept the document: only this package writes it."""
        return doc


class DaskLog(Model):
    """A part of the log of a job: ``{job, size, data}``, compressed with zlib."""

    def initialize(self) -> None:
        """Name the collection and its index."""
        self.name = "dask_log"
        self.ensureIndex("job")

    def validate(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Accept the document: only this package writes it."""
        return doc


def collection(model: Any) -> Any:
    """Return the collection of a model, read from the primary.

    Girder prefers secondaries, where an update that this process has made may not have
    arrived: nothing can be decided from that.
    """
    return model.collection.with_options(read_preference=ReadPreference.PRIMARY)


def ensure_indices() -> None:
    """Make the indices that serve every question this plugin asks about jobs."""
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
