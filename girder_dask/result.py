"""A job as the one who started it sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from girder_dask import submit
from girder_dask.errors import JobCanceled, JobFailed, ResultUnavailable
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.payload import open_value

__all__ = ["JobResult"]


class JobResult:
    """A job that was started.

    It can be indexed like the job document: ``result['title']``. What it knows of the
    job is as old as the last question; ``status``, ``ready()`` and the like ask again.

    Parameters
    ----------
    job
        A job document, or the id of a job as a string or ObjectId.
    """

    def __init__(self, job: Mapping[str, Any] | Any) -> None:
        self._complete = isinstance(job, Mapping)
        self._job: dict[str, Any] = dict(job) if self._complete else {"_id": str(job)}

    @property
    def id(self) -> str:
        """The id of the job."""
        return str(self._job["_id"])

    @property
    def task_id(self) -> str:
        """The id of the job, under the name that Celery has for it."""
        return self.id

    @property
    def job(self) -> dict[str, Any]:
        """The job document."""
        if not self._complete:
            self.refresh()
        return self._job

    def refresh(self) -> JobResult:
        """Ask Girder for the job document again."""
        self._job = submit.backend().load_job(self.id)
        self._complete = True
        return self

    def __getitem__(self, key: str) -> Any:
        return self.job[key]

    def __contains__(self, key: object) -> bool:
        return key in self.job

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        if not self._complete:
            return f"<JobResult {self.id}>"
        status = JobStatus(self._job["status"]).name
        return f"<JobResult {self.id} {self._job.get('title', '')!r} {status}>"

    @property
    def status(self) -> JobStatus:
        """The state of the job, asked for now unless it has ended."""
        if not self._complete or self._job["status"] not in FINAL:
            self.refresh()
        return JobStatus(self._job["status"])

    @property
    def state(self) -> str:
        """The name of the state of the job."""
        return self.status.name

    def ready(self) -> bool:
        """Say whether the job has ended."""
        return self.status in FINAL

    def successful(self) -> bool:
        """Say whether the job has ended in SUCCESS."""
        return self.status == JobStatus.SUCCESS

    def failed(self) -> bool:
        """Say whether the job has ended in ERROR."""
        return self.status == JobStatus.ERROR

    def log(self) -> str:
        """Return the job's log."""
        log = submit.backend().load_job(self.id, log=True).get("log") or []
        return log if isinstance(log, str) else "".join(log)

    def wait(self, timeout: float | None = None) -> JobResult:
        """Wait until the job has ended.

        Do not wait inside a Girder request for a job that needs this Girder: return the
        job instead, and let the client look.

        Parameters
        ----------
        timeout
            Seconds to wait, None for as long as it takes.

        Raises
        ------
        TimeoutError
            If the job has not ended by then. The job goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        while not self.ready():
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"Job {self.id} is {self.state} after {timeout} s; it goes on.")
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)
        return self

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the job and return what its function returned.

        Raises
        ------
        JobFailed
            If the job ended in ERROR.
        JobCanceled
            If it was canceled.
        ResultUnavailable
            If it succeeded but its value is not kept: it was larger than
            ``girder.worker.max-result``, or could not be pickled. In Girder also if it is
            not plain: what Girder opens must not run code.
        TimeoutError
            If it has not ended after ``timeout`` seconds.
        """
        self.wait(timeout)
        if self.status == JobStatus.CANCELED:
            raise JobCanceled(f"Job {self.id} was canceled.", job_id=self.id)
        backend = submit.backend()
        stored = backend.load_result(self.id)
        if self.status == JobStatus.ERROR:
            raise JobFailed(
                f"Job {self.id} failed: {stored.error or 'see its log'}", job_id=self.id
            )
        if stored.value is None:
            raise ResultUnavailable(
                f"The value that job {self.id} returned is not kept: "
                f"{stored.error or 'it is no longer there'}.",
                job_id=self.id,
            )
        try:
            return open_value(stored.value, unpickle=backend.unpickles)
        except ValueError as e:
            raise ResultUnavailable(
                f"What job {self.id} returned is not opened here: it holds more than None, bool, "
                "numbers, str, bytes, list, tuple and dict, and Girder unpickles nothing. Have the "
                "task return plain values, or upload a file.",
                job_id=self.id,
            ) from e

    def cancel(self) -> None:
        """Ask for the end of the job. It is CANCELED when nothing of it runs any more."""
        submit.backend().cancel(self.id)

    def revoke(self, **_options: Any) -> None:
        """Do what :meth:`cancel` does; the name is Celery's, whose options are ignored."""
        self.cancel()
