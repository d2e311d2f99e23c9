"""Validation of documents in Girder's database.

The database is input: Girder's own routes, other plugins, administrators and earlier versions write
to it too. Code that does more with a document than show it checks it here first. Malformed job
documents go into :mod:`girder_dask.plugin.store.quarantine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from bson import ObjectId

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.execution_options import OPTION_NAMES, ExecutionOptions
from girder_dask.protocol.patterns import explain_mismatch

__all__ = [
    "MalformedDocument",
    "check_job",
    "check_log",
    "check_map_parent",
    "check_outcome",
    "check_position",
    "check_record",
    "check_times",
    "is_id_value",
    "is_map_parent",
]

Rule = tuple[Callable[[Any], bool], str]

_STATUSES = frozenset(int(status) for status in JobStatus)
_BAD_REQUEST = 400


class MalformedDocument(GirderError):
    """A document in the database is malformed. The message names the field."""

    def __init__(self, document_id: Any, field: str, expected: str) -> None:
        super().__init__(
            f"The document of job {document_id} is malformed: its field {field} is not {expected}.",
            status=_BAD_REQUEST,
        )
        self.document_id = document_id
        self.field = field
        self.expected = expected


# -- rules for fields ---------------------------------------------------------------------------


def is_id_value(value: Any) -> bool:
    """Return True if a value is an id that can be queried and compared."""
    return isinstance(value, (ObjectId, str))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_truth(value: Any) -> bool:
    return type(value) is bool


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def _is_time(value: Any) -> bool:
    return isinstance(value, datetime)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_status(value: Any) -> bool:
    return type(value) is int and value in _STATUSES


def _or_none(rule: Rule) -> Rule:
    check, expected = rule
    return (lambda value: value is None or check(value)), f"{expected} or null"


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(part) for part in value)


def _is_stamp(value: Any) -> bool:
    return isinstance(value, dict) and _is_time(value.get("time"))


def _is_chunk(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[1])


def _is_image(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("name"))


def _is_resource(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and _is_text(value[0]) and _is_number(value[1])


_COUNT: Rule = (_is_count, "a count")
_TEXT: Rule = (_is_text, "text")
_TRUTH: Rule = (_is_truth, "true or false")
_TIME: Rule = (_is_time, "a time")
_BYTES: Rule = (_is_bytes, "bytes")
_MAPPING: Rule = (_is_mapping, "an object")
_KEY: Rule = (is_id_value, "an id")

# -- rules for documents ------------------------------------------------------------------------

_JOB: Mapping[str, Rule] = {
    "status": (_is_status, "the number of a state"),
    "created": _TIME,
    "timestamps": (_list_of(_is_stamp), "a list of times"),
}
_JOB_IF_THERE: Mapping[str, Rule] = {
    "progress": _or_none(_MAPPING),
    "userId": _or_none(_KEY),
    "parentId": _or_none(_KEY),
}
_OPEN: Mapping[str, Rule] = {"attempt": _COUNT, "sequence": _COUNT, "scheduler": _or_none(_TEXT)}
_DASK: Mapping[str, Rule] = {
    "attempt": _or_none(_COUNT),
    "sequence": _or_none(_COUNT),
    "scheduler": _or_none(_TEXT),
    "open": _TRUTH,
    "log_bytes": _COUNT,
    "lacked": _COUNT,
    "waits": _TEXT,
    "not_before": _TIME,
    "claim": _TEXT,
    "claimed": _TIME,
    "group": _MAPPING,
    "images": (_list_of(_is_image), "a list of images"),
}
_LOG: Mapping[str, Rule] = {
    "size": _COUNT,
    "left_out": _COUNT,
    "marked": _TRUTH,
    "tail": _BYTES,
    "chunks": (_list_of(_is_chunk), "a list of pieces"),
}
_GROUP: Mapping[str, Rule] = {
    **dict.fromkeys(("total", "done", "failed", "canceled", "revision"), _COUNT),
    "open": _TRUTH,
}
_GROUP_IF_THERE: Mapping[str, Rule] = {
    "recording": _TIME,
    "sending": _TRUTH,
    "incomplete": _TRUTH,
    "lost": _COUNT,
}
_OUTCOME: Mapping[str, Rule] = {
    "result": _or_none(_BYTES),
    "error": _or_none(_TEXT),
    "exception": _or_none(_BYTES),
    "result_attempt": _COUNT,
}
_RECORD: Mapping[str, Rule] = {
    "task": _TEXT,
    "token": _or_none(_TEXT),
    "own_token": _TRUTH,
    "payload_bytes": _COUNT,
}
# Null leaves an option of a call to its default; ``trusted`` has no default.
_RECORD_IF_THERE: Mapping[str, Rule] = {
    "payload": _BYTES,
    "trusted": _TRUTH,
    "resources": _or_none((_list_of(_is_resource), "a list of pairs")),
    "dependencies": _or_none((_list_of(_is_text), "a list of ids")),
    "girder_api_url": _or_none(_TEXT),
    "package": _or_none(_TEXT),
    "title": _or_none(_TEXT),
    "not_before": _or_none((_is_number, "a number")),
}


def check_job(job: Mapping[str, Any]) -> None:
    """Raise MalformedDocument unless a job can be updated, claimed and canceled."""
    job_id = job.get("_id")
    if not isinstance(job_id, ObjectId):
        raise MalformedDocument(job_id, "_id", "an id of Girder")
    _check(job_id, job, _JOB)
    _check(job_id, job, _JOB_IF_THERE, if_there=True)
    dask = job.get("dask")
    if dask is not None:
        _check(job_id, job, {"dask": _MAPPING})
        if dask.get("open") is True:
            _check(job_id, dask, _OPEN, "dask.")
        _check(job_id, dask, _DASK, "dask.", if_there=True)
    if "dask_log" in job:
        check_log(job_id, job["dask_log"])


def check_map_parent(job: Mapping[str, Any]) -> None:
    """Raise MalformedDocument unless a job is a parent of a map whose jobs can be counted."""
    check_job(job)
    _check(job["_id"], job, {"updated": _TIME})
    group: Any = (job.get("dask") or {}).get("group")
    _check(job["_id"], {"dask.group": group}, {"dask.group": _MAPPING})
    _check(job["_id"], group, _GROUP, "dask.group.")
    _check(job["_id"], group, _GROUP_IF_THERE, "dask.group.", if_there=True)


def check_position(job: Mapping[str, Any]) -> None:
    """Raise MalformedDocument unless a partly read job has an attempt and a sequence."""
    _check(job["_id"], job["dask"], {n: _OPEN[n] for n in ("attempt", "sequence")}, "dask.")
    if not isinstance(job["_id"], ObjectId):
        raise MalformedDocument(job["_id"], "_id", "an id of Girder")


def check_times(*names: str) -> Callable[[Mapping[str, Any]], None]:
    """Return a check that a partly read document has valid times in some fields."""
    return lambda job: _check(job["_id"], job, dict.fromkeys(names, _TIME))


def is_map_parent(job: Mapping[str, Any]) -> bool:
    """Return True if a job is the parent of a map."""
    dask = job.get("dask")
    return isinstance(dask, dict) and isinstance(dask.get("group"), dict)


def check_record(record: Mapping[str, Any]) -> None:
    """Raise MalformedDocument unless a document of ``dask_job`` is a valid record of a job."""
    _check(record.get("_id"), record, _RECORD, "dask_job.")
    _check(record.get("_id"), record, _RECORD_IF_THERE, "dask_job.", if_there=True)
    options = {name: record[name] for name in OPTION_NAMES if record.get(name) is not None}
    if "resources" in options:
        options["resources"] = dict(options["resources"])
    try:
        msgspec.convert(options, ExecutionOptions)
    except msgspec.ValidationError as e:
        problem, _, path = explain_mismatch(e).rpartition("$.")
        name = path.partition("[")[0].strip("`")
        problem = problem.partition(" - at ")[0]
        raise MalformedDocument(record.get("_id"), f"dask_job.{name}", f"valid ({problem})") from e


def check_log(job_id: Any, stored: Any) -> None:
    """Raise MalformedDocument unless the field ``dask_log`` of a job is valid."""
    _check(job_id, {"dask_log": stored}, {"dask_log": _MAPPING})
    _check(job_id, stored, _LOG, "dask_log.", if_there=True)


def check_outcome(job_id: Any, outcome: Any) -> None:
    """Raise MalformedDocument unless an outcome of a job, or a part of one, is valid."""
    _check(job_id, {"dask_outcome": outcome}, {"dask_outcome": _MAPPING})
    _check(job_id, outcome, _OUTCOME, "dask_outcome.", if_there=True)


def _check(
    document_id: Any,
    part: Mapping[str, Any],
    rules: Mapping[str, Rule],
    prefix: str = "",
    *,
    if_there: bool = False,
) -> None:
    for name, (is_right, expected) in rules.items():
        if if_there and name not in part:
            continue
        if not is_right(part.get(name)):
            raise MalformedDocument(document_id, prefix + name, expected)
