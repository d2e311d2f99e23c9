"""The lease of the scheduler that leads: one scheduler at a time gets the jobs of this Girder.

The lease is one document. Each claim of the leader renews it, which counts up its ``renewals``. No
clock of another host decides when it has run out: a scheduler that stands by watches that number
(:class:`girder_dask.scheduler.lease.SchedulerLease`), and names the one that has not changed for
the duration of the lease. The time in which Girder or its database was down does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from girder.models.model_base import Model
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from girder_dask.plugin.store import models

__all__ = ["Lease", "current", "release", "request"]

# One cluster runs the jobs of a Girder.
_CLUSTER = "default"


class DaskScheduler(Model):
    """The lease of a cluster: ``{_id, leader, place, host, renewals, renewed}``."""

    def initialize(self) -> None:
        """Name the collection."""
        self.name = "dask_scheduler"

    def validate(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Accept the document: only this module writes such documents."""
        return doc


@dataclass(frozen=True)
class Lease:
    """The lease, as a scheduler that asks for it sees it.

    Attributes
    ----------
    leads
        Whether the scheduler that asked has the lease.
    leader
        The id of the run of the scheduler that has it, None if none has.
    place
        The address and the host of the leader.
    renewals
        How often the lease was renewed.
    renewed
        When that was last.
    """

    leads: bool
    leader: str | None
    place: str
    renewals: int
    renewed: datetime

    def to_wire(self) -> dict[str, Any]:
        """Return what the scheduler is told."""
        return {"leads": self.leads, "place": self.place, "renewals": self.renewals}


def request(scheduler: str, place: str, host: str = "", take_over: int | None = None) -> Lease:
    """Renew the lease of a scheduler, or let it take the lease if that is free.

    It is free if no scheduler has it, or if its leader was at the same ``place`` of the same host:
    two processes cannot listen at one address, so that one has ended. It is also free if it was
    renewed ``take_over`` times and not once more, which the scheduler has watched for long enough.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    place
        The address and the host at which it listens.
    host
        The id of the running system there, since hosts may have the same name and address in
        networks of their own.
    take_over
        The number of renewals that has not changed for the duration of the lease.
    """
    free = [{"leader": scheduler}, {"leader": None}, {"place": place, "host": host}]
    if take_over is not None:
        free.append({"renewals": take_over})
    renewal = {
        "$set": {
            "leader": scheduler,
            "place": place,
            "host": host,
            "renewed": datetime.now(timezone.utc),
        },
        "$inc": {"renewals": 1},
    }
    leases = models.collection(DaskScheduler())
    for _ in range(2):  # the document may be made meanwhile
        try:
            found = leases.find_one_and_update(
                {"_id": _CLUSTER, "$or": free},
                renewal,
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            found = leases.find_one({"_id": _CLUSTER})
        if found is not None:
            break
    return _lease(found, scheduler)


def release(scheduler: str) -> None:
    """End the lease of a scheduler that stops, so that another one can lead at once."""
    models.collection(DaskScheduler()).update_one(
        {"_id": _CLUSTER, "leader": scheduler}, {"$set": {"leader": None}}
    )


def current() -> Lease | None:
    """Return the lease, None if no scheduler has it."""
    found = models.collection(DaskScheduler()).find_one({"_id": _CLUSTER})
    return None if found is None or found["leader"] is None else _lease(found, found["leader"])


def _lease(found: Any, scheduler: str) -> Lease:
    leader = found["leader"]
    return Lease(leader == scheduler, leader, found["place"], found["renewals"], found["renewed"])
