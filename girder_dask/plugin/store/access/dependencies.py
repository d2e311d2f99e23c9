"""Access of new jobs to the jobs whose results are their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from girder.constants import AccessType
from girder_jobs.models.job import Job

from girder_dask.errors import SubmissionError
from girder_dask.plugin.store import models
from girder_dask.plugin.store.access.requester import may_access
from girder_dask.plugin.store.database import to_object_id
from girder_dask.plugin.store.validation import is_map_parent
from girder_dask.protocol.messages import JobSpec

__all__ = ["DependencyRefused", "check"]

_ACCESS_FIELDS = {
    "dask.group": True,
    "access": True,
    "public": True,
    "publicFlags": True,
    "userId": True,
}


class DependencyRefused(SubmissionError):
    """The owner of a new job may not read a job whose result is among its arguments."""


def check(wanted: Iterable[tuple[JobSpec, Mapping[str, Any] | None]]) -> None:
    """Check that the owners of new jobs may read the jobs that these depend on.

    Parameters
    ----------
    wanted
        The specification of each new job, and its owner.

    Raises
    ------
    SubmissionError
        If a dependency does not exist, or is the parent of a map.
    DependencyRefused
        If the owner of a job may not read a dependency.
    """
    uses = {
        (job_id, None if owner is None else owner["_id"]): (spec, owner)
        for spec, owner in wanted
        for job_id in spec.dependencies or ()
    }
    if not uses:
        return
    found = _load({job_id for job_id, _ in uses})
    for (job_id, _), (spec, owner) in uses.items():
        job = found.get(job_id)
        if job is None:
            raise SubmissionError(
                f"There is no job {job_id}, whose value is an argument of {spec.task}. It may "
                "have been deleted. No job was created.",
                task=spec.task,
            )
        if not _may_read(job, owner):
            raise DependencyRefused(
                f"{owner['login'] if owner else 'A job without an owner'} may not read job "
                f"{job_id}, whose value is an argument of {spec.task}. No job was created. Ask the "
                "owner of that job for access to it.",
                task=spec.task,
            )
        if is_map_parent(job):
            raise SubmissionError(
                f"Job {job_id}, which is an argument of {spec.task}, is the parent job of a map "
                "and has no value of its own. Pass what map() returned, or the list of its jobs. "
                "No job was created.",
                task=spec.task,
            )


def _load(ids: set[str]) -> dict[str, dict[str, Any]]:
    known = [found for job_id in ids if (found := to_object_id(job_id))]
    found = models.collection(Job()).find({"_id": {"$in": known}}, _ACCESS_FIELDS)
    return {str(job["_id"]): job for job in found}


def _may_read(job: dict[str, Any], owner: Mapping[str, Any] | None) -> bool:
    # Jobs without an owner, which a plugin has started, may use each other.
    if owner is None and job.get("userId") is None:
        return True
    return may_access(job, owner, AccessType.READ)
