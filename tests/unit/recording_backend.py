"""A backend that remembers what it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.submit import StoredResult, Submission


class RecordingBackend:
    unpickles = False

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, StoredResult] = {}
        self.canceled: list[str] = []
        self.loads = 0
        self.before_load: Callable[[], None] = lambda: None

    def submit(self, submissions: Sequence[Submission]) -> list[dict[str, Any]]:
        made = []
        for submission in submissions:
            self.submissions.append(submission)
            job = {
                "_id": f"job{len(self.submissions)}",
                "title": submission.title,
                "status": int(JobStatus.QUEUED),
            }
            self.jobs[job["_id"]] = job
            made.append(dict(job))
        return made

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        self.loads += 1
        self.before_load()
        if job_id not in self.jobs:
            raise GirderError(f"Invalid job id ({job_id}).", status=400)
        job = dict(self.jobs[job_id])
        if not log:
            job.pop("log", None)
        return job

    def load_result(self, job_id: str) -> StoredResult:
        return self.results.get(job_id, StoredResult())

    def cancel(self, job_id: str) -> None:
        self.canceled.append(job_id)

    def scheduler_address(self) -> str | None:
        return None
