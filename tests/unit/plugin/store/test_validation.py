"""What this package writes has the form that it asks for."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from bson import ObjectId
from msgspec.structs import fields, replace

from girder_dask.jobs import JobStatus
from girder_dask.plugin.store.validation import (
    MalformedDocument,
    check_job,
    check_map_parent,
    check_outcome,
    check_record,
)
from girder_dask.protocol.messages import JobSpec

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
JOB: dict[str, Any] = {
    "_id": ObjectId(),
    "status": 1,
    "created": NOW,
    "updated": NOW,
    "timestamps": [{"status": 1, "time": NOW}],
    "progress": None,
    "userId": ObjectId(),
    "parentId": None,
    "dask": {"attempt": 1, "sequence": 0, "scheduler": None, "log_bytes": 0, "open": True},
}
SPEC = JobSpec(id=str(ObjectId()), attempt=1, task="a:b", payload=b"j[]", token="t")


def record(spec: JobSpec) -> dict[str, Any]:
    from girder_dask.plugin.store import job_records

    return job_records._record(spec, own_token=True, from_girder=False)


@pytest.mark.parametrize("status", list(JobStatus))
def test_jobs_in_all_states(status: JobStatus) -> None:
    check_job({**JOB, "status": int(status)})
    check_job({**JOB, "status": int(status), "dask": {"task": "a:b"}})  # of createJob()
    check_job({key: value for key, value in {**JOB, "dask": None}.items() if key != "dask"})


def test_parents_of_maps() -> None:
    group = {"total": 1, "done": 0, "failed": 0, "canceled": 0, "open": True, "revision": 0}
    check_map_parent({**JOB, "dask": {"task": "a", "group": {**group, "recording": NOW}}})
    with pytest.raises(MalformedDocument, match=r"its field dask\.group\.revision is not a count"):
        check_map_parent({**JOB, "dask": {"group": {"open": True} | {**group, "revision": None}}})


def test_outcomes_are_of_the_kinds_that_are_kept() -> None:
    from girder_dask.plugin.store.results import AttemptOutcome

    check_outcome(JOB["_id"], AttemptOutcome(1, b"j1", "error", b"p").document())
    check_outcome(JOB["_id"], AttemptOutcome(0).document())
    with pytest.raises(MalformedDocument, match=r"dask_outcome\.error is not text or null"):
        check_outcome(JOB["_id"], {"error": 5})


@pytest.mark.parametrize("name", [f.name for f in fields(JobSpec) if f.default is not None])
def test_how_to_run_a_job_may_leave_options_open(name: str) -> None:
    check_record(record(SPEC))
    if name not in {"id", "attempt", "task", "payload", "trusted"}:
        check_record(record(replace(SPEC, **{name: None})))


@pytest.mark.parametrize(
    ("name", "value"), [("trusted", None), ("trusted", 1), ("priority", 1.5), ("task", None)]
)
def test_what_would_be_taken_for_something_else_is_malformed(name: str, value: Any) -> None:
    with pytest.raises(MalformedDocument, match=f"its field dask_job.{name} is not"):
        check_record({**record(SPEC), name: value})
