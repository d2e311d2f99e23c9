"""A site whose queue an earlier release has recorded, taken over by this one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from my_worker_tasks import add_one

from girder_dask import JobResult, connect
from girder_dask.errors import JobFailed
from girder_dask.jobs import JobStatus
from girder_dask.transforms import GirderFileId
from tests.support.restored_stack import RestoredStack, load_dump

DUMP = load_dump(Path(__file__).parents[1] / "data" / "upgrade_dump.json.gz")
JOBS: dict[str, dict[str, Any]] = DUMP["jobs"]
#: What they return is looked at in a test of its own.
OTHERS = {name for name in JOBS if name.startswith("hook ")} | {"kept", "raised"}


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestoredStack]:
    """Give a stack of this release with the database of the earlier one."""
    stack = RestoredStack(tmp_path_factory.mktemp("upgrade") / "stack", DUMP)
    with stack, connect(stack.api, api_key=stack.api_key):
        yield stack


def status_in_dump(name: str) -> JobStatus:
    documents = {document["_id"]["$oid"]: document for document in DUMP["collections"]["job"]}
    return JobStatus(documents[JOBS[name]["id"]]["status"])


def test_the_dump_has_jobs_of_every_kind() -> None:
    waiting = [name for name in JOBS if status_in_dump(name) == JobStatus.QUEUED]
    assert len(waiting) > 30
    payloads = [
        record["payload"] for record in DUMP["collections"]["dask_job"] if "payload" in record
    ]
    assert payloads
    assert DUMP["collections"]["dask_payload"]
    parent = JOBS["half a map"]["id"]
    children = [d for d in DUMP["collections"]["job"] if d.get("parentId") == {"$oid": parent}]
    states = [JobStatus(child["status"]) for child in children]
    assert states.count(JobStatus.SUCCESS) == 3
    assert {JobStatus.RUNNING, JobStatus.QUEUED} < set(states)


@pytest.mark.parametrize("name", sorted(JOBS.keys() - OTHERS))
def test_recorded_jobs_return_what_they_are_to_return(upgraded: RestoredStack, name: str) -> None:
    job = upgraded.wait(JOBS[name]["id"], 60)
    assert job["status"] == JobStatus.SUCCESS, "".join(job["log"])
    assert JobResult(job["_id"]).get() == ast.literal_eval(JOBS[name]["expected"])


def test_every_recorded_job_ends(upgraded: RestoredStack) -> None:
    ended = {
        d["_id"]["$oid"]: upgraded.wait(d["_id"]["$oid"], 60) for d in DUMP["collections"]["job"]
    }
    failed = {job_id for job_id, job in ended.items() if job["status"] != JobStatus.SUCCESS}
    assert failed == {JOBS["raised"]["id"]}


def test_results_go_where_hooks_were_to_send_them(upgraded: RestoredStack) -> None:
    for name in JOBS:
        if name.startswith("hook "):
            assert upgraded.wait(JOBS[name]["id"], 60)["status"] == JobStatus.SUCCESS
    admin, places = upgraded.admin, DUMP["places"]
    in_folder = [item["name"] for item in admin.listItem(places["folder"])]
    assert sorted(in_folder) == ["file-0.txt", "file-1.txt"]
    in_item = [file["name"] for file in admin.listFile(places["item"])]
    assert sorted(in_item) == ["file-0.txt", "file-1.txt"]
    assert admin.getItem(places["item"])["meta"] == {"coins": 24}
    artifacts = admin.get(f"job/{JOBS['hook artifact']['id']}/artifact")
    assert [artifact["name"].rpartition("/")[2] for artifact in artifacts] == ["file-0.txt"]


def test_values_that_were_kept_are_opened(upgraded: RestoredStack) -> None:
    status, result, numbers, task, kind, file = JobResult(JOBS["kept"]["id"]).get()
    assert status is JobStatus.SUCCESS
    assert (type(result), file) == (JobResult, GirderFileId)
    assert np.array_equal(numbers, np.arange(3))
    assert task is add_one
    assert kind(4).transform() == 8
    with pytest.raises(JobFailed, match="no coins") as caught:
        JobResult(JOBS["raised"]["id"]).get()
    assert type(caught.value).__name__ == "NoCoins"
