"""A backend that records its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from girder_dask.errors import GirderError, SchedulerError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import MapParent, StoredResult, Submission


class RecordingBackend:
    ships_code = False

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.groups: list[MapParent | None] = []
        self.pieces: list[tuple[int, bool]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, StoredResult] = {}
        self.canceled: list[str] = []
        self.trusted: set[str] = set()
        self.loads = 0
        self.before_load: Callable[[], None] = lambda: None

    def unpickles(self, job: Mapping[str, Any]) -> bool:
        return job["_id"] in self.trusted

    def submit(
        self,
        submissions: Sequence[Submission],
        group: MapParent | None = None,
        *,
        more: bool = False,
    ) -> list[dict[str, Any]]:
        self.groups.append(group)
        self.pieces.append((len(submissions), not more))
        made = []
        if group is not None:
            made.append({"_id": "parent", "title": group.title, "status": int(JobStatus.QUEUED)})
            self.jobs["parent"] = dict(made[0])
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

    def extend_map(
        self, parent: str, submissions: Sequence[Submission], *, offset: int, is_last: bool
    ) -> list[str]:
        assert parent == "parent"
        assert offset == len(self.submissions)
        made = self.submit(submissions, more=not is_last)
        return [str(job["_id"]) for job in made]

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        self.loads += 1
        self.before_load()
        if job_id not in self.jobs:
            raise GirderError(f"Invalid job id ({job_id}).", status=400)
        job = dict(self.jobs[job_id])
        if not log:
            job.pop("log", None)
        return job

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        self.loads += 1
        self.before_load()
        return [dict(self.jobs[job_id]) for job_id in job_ids if job_id in self.jobs]

    def load_log(self, job_id: str) -> str:
        return "".join(self.load_job(job_id, log=True).get("log") or [])

    def load_result(self, job_id: str) -> StoredResult:
        return self.results.get(job_id, StoredResult())

    def load_results(self, job_ids: Sequence[str]) -> dict[str, StoredResult]:
        return {job_id: self.load_result(job_id) for job_id in job_ids}

    def cancel(self, job_id: str) -> None:
        self.canceled.append(job_id)

    def scheduler_address(self) -> str | None:
        return None

    def dask_client(self) -> Any:
        raise SchedulerError("No scheduler is known here.")
