"""``girder-dask prune`` against a real Girder."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from girder_dask.jobs import JobStatus
from tests.support.rest_site import ask, call, submit


def prune(stack: Any, *options: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "girder_dask.cli", "prune", *options, "--api-url", stack.api],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "GIRDER_API_KEY": key or stack.api_key},
    )


def test_prune_deletes_old_jobs_of_one_user(girder_stack: Any, girder_user: Any) -> None:
    calls = [call("my_worker_tasks:my_task", n) for n in range(3)]
    made = submit(girder_stack, *calls, by=girder_stack.admin).json()["jobs"]
    ids = [job["_id"] for job in made]
    for job_id in ids:
        girder_stack.wait(job_id, status=JobStatus.SUCCESS)
    ids = girder_stack.call(make_old, ids)
    chosen = ("--older-than", "30", "--owner", girder_stack.login)

    counted = prune(girder_stack, "jobs", *chosen, "--dry-run")
    assert (counted.returncode, counted.stdout) == (0, "Girder would delete 3 jobs.\n")
    none = prune(girder_stack, "jobs", "--older-than", "30", "--owner", girder_user.login)
    assert (none.returncode, none.stdout) == (0, "Girder deleted 0 jobs.\n")
    logs = prune(girder_stack, "logs", *chosen)
    assert (logs.returncode, logs.stdout) == (0, "Girder deleted the logs of 3 jobs.\n")
    assert girder_stack.log(ids[0]).startswith("[The log was deleted")
    jobs = prune(girder_stack, "jobs", *chosen)
    assert (jobs.returncode, jobs.stdout) == (0, "Girder deleted 3 jobs.\n")
    gone = [ask(girder_stack, "GET", f"job/{i}", by=girder_stack.admin).status_code for i in ids]
    assert gone == [400, 400, 400]


def test_prune_is_for_administrators(girder_stack: Any, girder_user: Any) -> None:
    key = girder_user.client.post("api_key", parameters={"name": "mine"})["key"]
    done = prune(girder_stack, "jobs", "--older-than", "1", key=key)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"Error: Girder at {girder_stack.api} refuses POST dask/prune (HTTP 403): Administrator "
        "access required.\n"
    )


def make_old(ids: list[str]) -> list[str]:
    """Let jobs seem to be forty days old, under other ids. Run it in Girder."""
    from datetime import datetime, timedelta, timezone

    from bson import ObjectId
    from girder_jobs.models.job import Job

    old = datetime.now(timezone.utc) - timedelta(days=40)
    jobs, made = Job().collection, []
    for job_id in ids:
        job = jobs.find_one({"_id": ObjectId(job_id)})
        jobs.delete_one({"_id": job["_id"]})
        unique = str(job["_id"])[8:]
        job["_id"] = ObjectId(str(ObjectId.from_datetime(old))[:8] + unique)
        jobs.insert_one({**job, "updated": old})
        made.append(str(job["_id"]))
    return made
