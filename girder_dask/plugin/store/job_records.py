"""Records of jobs in ``dask_job`` and ``dask_payload``, and queries about jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.celery import may_have_jobs
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin import settings
from girder_dask.plugin.store import tokens
from girder_dask.plugin.store.argument_tokens import blank_tokens
from girder_dask.plugin.store.database import insert, to_object_id
from girder_dask.plugin.store.models import (
    CHUNK_BYTES,
    INLINE_BYTES,
    OPEN_INDEX,
    DaskJob,
    DaskPayload,
    collection,
)
from girder_dask.protocol.execution_options import OPTION_NAMES
from girder_dask.protocol.messages import JobSpec

__all__ = [
    "Origin",
    "close_removed",
    "count_unfinished",
    "delete",
    "find_running_job",
    "has_token",
    "is_descendant",
    "is_stopping",
    "load_dependencies",
    "load_origin",
    "load_own_tokens",
    "load_spec",
    "load_specs",
    "load_states",
    "load_status",
    "payload_pieces",
    "purge_ended",
    "set_tokens",
    "store_records",
]

_MAX_COUNTED = 1_000

_SPEC_FIELDS = (
    *("girder_api_url", "package", "title", "dependencies", "trusted", "not_before"),
    *OPTION_NAMES,
)


@dataclass(frozen=True, slots=True)
class Origin:
    """The task of a job, and whether code inside Girder has started it.

    ``from_girder`` is also true for jobs of the same package that such a job has started.
    ``girder_api_url`` is Girder's REST API as that code gave it.
    """

    task: str = ""
    from_girder: bool = False
    girder_api_url: str | None = None


def store_records(
    specs: Sequence[JobSpec], own_tokens: Sequence[bool], from_girder: Sequence[bool]
) -> None:
    """Store the records and the calls of new jobs.

    ``own_tokens`` is true for tokens that end with their job; ``from_girder`` is as in
    :class:`Origin`.
    """
    insert(DaskPayload().collection, [piece for spec in specs for piece in payload_pieces(spec)])
    insert(
        DaskJob().collection,
        [_record(*each) for each in zip(specs, own_tokens, from_girder, strict=True)],
    )


def payload_pieces(spec: JobSpec) -> list[dict[str, Any]]:
    """Cut the pickled call of a job into documents; none for a small one."""
    job, data = ObjectId(spec.id), spec.payload
    if len(data) <= INLINE_BYTES:
        return []
    return [
        {"job": job, "n": n, "data": data[start : start + CHUNK_BYTES]}
        for n, start in enumerate(range(0, len(data), CHUNK_BYTES))
    ]


def _record(spec: JobSpec, own_token: bool, from_girder: bool) -> dict[str, Any]:
    return {
        **{name: getattr(spec, name) for name in _SPEC_FIELDS},
        "_id": ObjectId(spec.id),
        "task": spec.task,
        "token": spec.token,
        "own_token": own_token,
        "from_girder": from_girder,
        "payload_bytes": len(spec.payload),
        **({"payload": spec.payload} if len(spec.payload) <= INLINE_BYTES else {}),
        # Pairs, since the name of a resource need not be a valid key of MongoDB.
        "resources": list(spec.resources.items()) if spec.resources else None,
    }


def load_specs(records: Iterable[Mapping[str, Any]], attempts: Mapping[Any, int]) -> list[JobSpec]:
    """Return the specs of jobs whose ``dask_job`` documents are given.

    Jobs whose pickled calls are missing or incomplete are left out.
    """
    records = list(records)
    payloads: dict[Any, list[bytes]] = {}
    apart = [record["_id"] for record in records if "payload" not in record]
    pieces = collection(DaskPayload()).find({"job": {"$in": apart}}, sort=[("job", 1), ("n", 1)])
    for piece in pieces if apart else ():
        payloads.setdefault(piece["job"], []).append(piece["data"])
    specs = []
    default = settings.default_api_url()
    for record in records:
        payload = record.get("payload") or b"".join(payloads.get(record["_id"], ()))
        if payload and len(payload) == record["payload_bytes"]:
            specs.append(_spec(record, payload, attempts[record["_id"]], default))
    return specs


def _spec(
    record: Mapping[str, Any], payload: bytes, attempt: int, default_api_url: str | None
) -> JobSpec:
    # A record of an older version lacks some of these fields. Its api_url is left out, since it
    # may come from a request.
    fields = {name: record[name] for name in _SPEC_FIELDS if record.get(name) is not None}
    if "resources" in fields:
        fields["resources"] = dict(fields["resources"])
    return JobSpec(
        id=str(record["_id"]),
        attempt=attempt,
        task=record["task"],
        payload=payload,
        token=record["token"],
        default_api_url=default_api_url,
        **fields,
    )


def load_spec(job_id: ObjectId) -> JobSpec | None:
    """Return how a job runs, None if it has ended or no longer exists."""
    record = collection(DaskJob()).find_one({"_id": job_id}, {"result": False})
    specs = [] if record is None else load_specs([record], {job_id: 1})
    return specs[0] if specs else None


def load_dependencies(job_id: ObjectId) -> list[str]:
    """Return the ids of the jobs whose results are arguments of a job."""
    record = collection(DaskJob()).find_one({"_id": job_id}, {"dependencies": 1}) or {}
    return list(record.get("dependencies") or ())


def load_origin(job_id: ObjectId) -> Origin:
    """Return the task of a job, and whether code inside Girder has started it."""
    fields = ("task", "from_girder", "girder_api_url")
    record = collection(DaskJob()).find_one({"_id": job_id}, dict.fromkeys(fields, 1)) or {}
    return Origin(
        task=str(record.get("task") or ""),
        from_girder=record.get("from_girder") is True,
        girder_api_url=record.get("girder_api_url") or None,
    )


def find_running_job(token: str, job_id: ObjectId | None = None) -> dict[str, Any] | None:
    """Return the unfinished job of a token, without its log, None if there is none.

    With ``job_id``, only that job is considered; it may have been given an existing token.
    """
    which = {"own_token": True} if job_id is None else {"_id": job_id}
    record = collection(DaskJob()).find_one({"token": token, **which}, {"_id": 1})
    if record is None:
        return None
    job: dict[str, Any] | None = collection(Job()).find_one(
        {"_id": record["_id"], "dask.open": True}, {"log": False, "args": False, "kwargs": False}
    )
    return job


def has_token(job_id: str, token: str) -> bool:
    """Return True if a token is that of a job, its own or one that it was given."""
    which = {"_id": to_object_id(job_id), "token": token}
    return collection(DaskJob()).find_one(which, {"_id": True}) is not None


def load_states(job_ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return the states of jobs, with the fields that determine who may read them."""
    ids = [found for job_id in job_ids if (found := to_object_id(job_id))]
    fields = (
        "title",
        "status",
        "progress",
        "updated",
        "dask.group",
        "dask.waits",
        "dask.not_before",
    )
    rights = ("userId", "access", "public", "publicFlags")
    return list(collection(Job()).find({"_id": {"$in": ids}}, dict.fromkeys(fields + rights, True)))


def load_status(job_id: ObjectId) -> JobStatus | None:
    """Return the state of a job, None if there is no such job."""
    job = collection(Job()).find_one({"_id": job_id}, {"status": True})
    try:
        return None if job is None else JobStatus(job.get("status"))
    except (ValueError, TypeError):
        return JobStatus.ERROR  # malformed, so the job does not run


def count_unfinished(tasks: Sequence[str]) -> int:
    """Return the number of unfinished jobs of some tasks, a thousand at most."""
    query = {"dask.open": True, "dask.task": {"$in": list(tasks)}}
    jobs = collection(Job())
    return int(jobs.count_documents(query, limit=_MAX_COUNTED, hint=OPEN_INDEX))


def is_descendant(job: Mapping[str, Any], of: ObjectId) -> bool:
    """Return True if a job was started by another job, directly or through other jobs."""
    parent, seen = job.get("parentId"), set()
    while isinstance(parent, ObjectId) and parent != of and parent not in seen:
        seen.add(parent)
        above = collection(Job()).find_one({"_id": parent}, {"parentId": True}) or {}
        parent = above.get("parentId")
    return parent == of


def is_stopping(job_id: ObjectId) -> bool:
    """Return True if a job was canceled."""
    return load_status(job_id) in (JobStatus.CANCELING, JobStatus.CANCELED)


def purge_ended(job_ids: Sequence[ObjectId]) -> None:
    """Delete the tokens and calls of jobs that have ended. Their outcomes stay."""
    if not job_ids:
        return
    tokens.pending.take(job_ids)
    these = {"_id": {"$in": list(job_ids)}}
    fields = {"token": 1, "own_token": 1, "payload_bytes": 1, "inline": {"$gt": ["$payload", None]}}
    found = list(collection(DaskJob()).find(these, fields))
    # By token and by job: tokens of earlier versions do not name their job.
    own = (record["token"] for record in found if record["own_token"] and record["token"])
    tokens.delete(own, of=job_ids)
    apart = [record["_id"] for record in found if record["payload_bytes"] and not record["inline"]]
    if apart:
        DaskPayload().collection.delete_many({"job": {"$in": apart}})
    if may_have_jobs():
        blank_tokens(job_ids)
    DaskJob().collection.update_many(
        these, {"$set": {"token": None, "payload_bytes": 0}, "$unset": {"payload": True}}
    )


def delete(job_ids: Sequence[ObjectId]) -> None:
    """Delete everything stored for jobs except their documents and logs."""
    tokens.pending.take(job_ids)
    tokens.delete(load_own_tokens(job_ids), of=job_ids)
    DaskPayload().collection.delete_many({"job": {"$in": list(job_ids)}})
    DaskJob().collection.delete_many({"_id": {"$in": list(job_ids)}})


def close_removed(job_id: ObjectId) -> None:
    """End an unfinished job that is about to be deleted, so that it can no longer be claimed.

    From now on it is not counted among the jobs of its parent.
    """
    jobs = Job().collection
    jobs.update_one(
        {"_id": job_id, "status": {"$nin": [int(status) for status in FINAL]}},
        {"$set": {"status": int(JobStatus.CANCELED)}, "$unset": {"dask.open": True}},
    )
    jobs.update_one({"_id": job_id}, {"$unset": {"parentId": True}})


def set_tokens(ids: Mapping[Any, str]) -> None:
    """Set the tokens of jobs, by the ids of the jobs."""
    DaskJob().collection.bulk_write(
        [UpdateOne({"_id": job}, {"$set": {"token": token}}) for job, token in ids.items()],
        ordered=False,
    )


def load_own_tokens(job_ids: Sequence[ObjectId]) -> list[str]:
    """Return the ids of the tokens that were created for jobs and end with them."""
    records = collection(DaskJob()).find(
        {"_id": {"$in": list(job_ids)}, "own_token": True}, {"token": 1}
    )
    return [record["token"] for record in records if record["token"]]
