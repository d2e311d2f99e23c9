"""The retries that runs have asked for, in the documents of their jobs.

They are written together with the attempt, so that a scheduler that claims the job counts on from
there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from girder_dask.plugin.store.documents import start_fields
from girder_dask.protocol.messages import JobSpec, RetryRequest

__all__ = ["RETRY_FIELD", "RetryChange", "with_retry_requests"]

logger = logging.getLogger(__name__)

#: The field of a job document with the last request. No route shows it.
RETRY_FIELD = "dask_retry"


class RetryChange:
    """The request of a job for another attempt: the stored one, and a new one to be written.

    Parameters
    ----------
    job
        The job document as it was read. The stored request is taken out of it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.stored = job.pop(RETRY_FIELD, None)
        self._new: RetryRequest | None = None

    def request(self, request: RetryRequest, dask: dict[str, Any]) -> None:
        """Store a new request. The attempt may begin also if only one run of the job may."""
        self._new = request
        dask.pop("begun", None)
        dask.update(start_fields(request.not_before))

    def add_to(self, change: dict[str, Any], *, ended: bool) -> None:
        """Add the new request to the write of a change. A job that has ended has none."""
        if self._new is not None:
            change["$set"][RETRY_FIELD] = _document(self._new)
        elif ended and self.stored is not None:
            change.setdefault("$unset", {})[RETRY_FIELD] = True


def _document(request: RetryRequest) -> dict[str, Any]:
    stored: dict[str, Any] = msgspec.to_builtins(request, builtin_types=(bytes,))
    if request.resources is not None:
        # Pairs, since the name of a resource need not be a valid key of MongoDB.
        stored["resources"] = list(request.resources.items())
    return stored


def with_retry_requests(specs: Iterable[JobSpec], stored: Mapping[str, Any]) -> list[JobSpec]:
    """Return the specs of jobs with what the last runs have asked for, as stored by job id."""
    return [_with_request(spec, stored.get(spec.id)) for spec in specs]


def _with_request(spec: JobSpec, stored: Any) -> JobSpec:
    if stored is None:
        return spec
    try:
        if stored.get("resources") is not None:
            stored = {**stored, "resources": dict(stored["resources"])}
        request = msgspec.convert(stored, RetryRequest, builtin_types=(bytes,))
    except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as e:
        logger.warning("The stored request of job %s to be tried again is ignored: %s", spec.id, e)
        return spec
    return request.apply_to(spec)
