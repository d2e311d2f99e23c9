"""Handle to a job for the code that started it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from girder_dask.client.backend import get_backend
from girder_dask.errors import (
    GirderDaskError,
    JobCanceled,
    ResultUnavailable,
)
from girder_dask.jobs import FINAL, JobStatus, waits_for
from girder_dask.protocol.exceptions import failure
from girder_dask.protocol.payload import NotOpened, Unpicklable, open_value

if TYPE_CHECKING:
    from distributed import Future

    from girder_dask.protocol.messages import StoredResult

__all__ = ["CallResult", "JobResult", "MapResult", "prefetch"]

_MIN_POLL_S, _MAX_POLL_S, _POLL_GROWTH = 0.01, 1.0, 1.5
_MAX_JOBS_PER_REQUEST = 1_000


class CallResult:
    """Base class of the results of calls, with or without a job."""

    @property
    def id(self) -> str | None:
        """The id of the job."""
        raise NotImplementedError

    @property
    def task_id(self) -> str | None:
        """The same as ``id``, under Celery's name."""
        return self.id

    @property
    def status(self) -> JobStatus:
        """The state of the job."""
        raise NotImplementedError

    @property
    def state(self) -> str:
        """The name of the state of the job."""
        return self.status.name

    def ready(self) -> bool:
        """Return True if the job has ended."""
        return self.status in FINAL

    def successful(self) -> bool:
        """Return True if the job has ended in SUCCESS."""
        return self.status == JobStatus.SUCCESS

    def failed(self) -> bool:
        """Return True if the job has ended in ERROR."""
        return self.status == JobStatus.ERROR

    def cancel(self) -> None:
        """Cancel the job."""
        raise NotImplementedError

    def revoke(self, **_options: Any) -> None:
        """Do what :meth:`cancel` does, under Celery's name. Its options are ignored."""
        self.cancel()


class JobResult(CallResult):
    """Handle to a started job.

    It can be indexed like the job document: ``result['title']``. The document is as old as the
    last request to Girder; ``status``, ``ready()`` and the like send a new one.

    As an argument of another ``delay()``, also within lists and dicts, it stands for the value
    that its job will return. The other job waits for it in the queue.

    Parameters
    ----------
    job
        A job document, or the id of a job as a string or ObjectId.

    Attributes
    ----------
    parent
        In a chain, the result before this one.
    """

    parent: JobResult | None = None

    def __init__(self, job: Mapping[str, Any] | Any) -> None:
        self._complete = isinstance(job, Mapping)
        self._job: dict[str, Any] = dict(job) if self._complete else {"_id": str(job)}
        self._future: Future[Any] | None = None
        self._stored: StoredResult | None = None

    @property
    def id(self) -> str:
        """The id of the job."""
        return str(self._job["_id"])

    @property
    def job(self) -> dict[str, Any]:
        """The job document."""
        if not self._complete:
            self.refresh()
        return self._job

    def refresh(self) -> JobResult:
        """Load the job document again."""
        self._job = get_backend().load_job(self.id)
        self._complete = True
        return self

    def __getitem__(self, key: str) -> Any:
        return self.job[key]

    def __contains__(self, key: object) -> bool:
        return key in self.job

    def __iter__(self) -> Any:
        raise TypeError(
            f"A JobResult is not a sequence. Use result.get() for the value of job {self.id}, or "
            "result.job for its document."
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return JobResult, (self.id,)

    def __repr__(self) -> str:
        if "status" not in self._job:
            return f"<JobResult {self.id}>"
        return f"<JobResult {self.id} {self._job.get('title', '')!r} {self._where()}>"

    def _where(self) -> str:
        """Return the name of the last known state, and why the job waits in it."""
        why = waits_for(self._job)
        return JobStatus(self._job["status"]).name + (f", waiting: {why}" if why else "")

    @property
    def status(self) -> JobStatus:
        """The state of the job, loaded from Girder unless the job has ended."""
        if self._job.get("status") not in FINAL:
            states = get_backend().load_jobs([self.id])
            if states:
                self._apply_state(states[0])
            else:
                self.refresh()  # raises the reason
        return JobStatus(self._job["status"])

    @property
    def waits_for(self) -> str:
        """Why the job waits in the queue, loaded from Girder; empty if it only waits for its turn.

        The job's page shows the same sentence beside the state.
        """
        _ = self.status
        return waits_for(self._job)

    def _apply_state(self, state: Mapping[str, Any]) -> None:
        """Record a state that Girder has returned, perhaps for many jobs at once."""
        if self._job.get("status") not in FINAL:
            # The rest of the document is loaded when it is read, since the log comes with it.
            self._complete = self._complete and self._job.get("status") == state["status"]
            dask = {**(self._job.get("dask") or {}), "waits": None, **(state.get("dask") or {})}
            self._job.update({**state, "dask": dask})

    def _has_ended(self) -> bool:
        """Return True if the last known state is final."""
        return self._job.get("status") in FINAL

    def _apply_fetched(self, state: Mapping[str, Any] | None, stored: StoredResult | None) -> None:
        """Record a state and a result that were loaded for many jobs at once."""
        if state is not None:
            self._apply_state(state)
        if self._has_ended():  # otherwise there is no result yet
            self._stored = stored

    def log(self) -> str:
        """Return the job's log, as far as Girder stores it (up to ``girder.max-log``)."""
        return get_backend().load_log(self.id)

    def wait(self, timeout: float | None = None) -> JobResult:
        """Wait until the job has ended.

        Do not wait inside a Girder request for a job that needs this Girder: return the
        job, and let the client poll.

        Parameters
        ----------
        timeout
            Seconds to wait. None: without limit.

        Raises
        ------
        TimeoutError
            If the job has not ended by then. The job continues.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause_s = _MIN_POLL_S
        while not self.ready():
            left_s = pause_s if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"Job {self.id} is {self._where()} after {timeout} s; it continues."
                )
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * _POLL_GROWTH, _MAX_POLL_S)
        return self

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the job and return what its function returned.

        For the parent job of a map that is the list of the values of its jobs.

        Raises
        ------
        JobFailed
            If the job ended in ERROR. If possible, the error is also an instance of the class
            that the task raised. Its cause has the traceback of the worker.
        JobCanceled
            If it was canceled.
        ResultUnavailable
            If it succeeded, but its value is unavailable. The value was larger than
            ``girder.worker.max-result`` and is no longer on the cluster, could not be pickled,
            or cannot be unpickled here, for example because a package is missing. Inside Girder,
            also if the value is not plain, since Girder must not run the code of others.
        TimeoutError
            If it has not ended after ``timeout`` seconds.
        """
        self.wait(timeout)
        if self.status == JobStatus.CANCELED:
            raise JobCanceled(f"Job {self.id} was canceled.", job_id=self.id)
        backend = get_backend()
        stored, self._stored = self._stored or backend.load_result(self.id), None
        if stored.parts is not None:
            return MapResult(self.job, map(JobResult, stored.parts)).get()
        unpickle = backend.unpickles(self._job)
        if self.status == JobStatus.ERROR:
            raise failure(self.id, stored.error, stored.exception, unpickle=unpickle)
        if stored.value is None:
            return self._value_on_cluster(stored.error, unpickle=unpickle)
        try:
            return open_value(stored.value, unpickle=unpickle)
        except NotOpened as e:
            raise ResultUnavailable(f"The value of job {self.id} {e}.", job_id=self.id) from e

    def _value_on_cluster(self, why: str | None, *, unpickle: bool) -> Any:
        """Return a value that Girder does not store from the cluster, if it is there."""
        if unpickle:
            try:
                value = self.future.result()
            except Exception as e:  # noqa: BLE001 - what unpickling raises is anything
                known = isinstance(e, GirderDaskError)
                why = f"{why or 'it is no longer there'}; {e if known else repr(e)}"
            else:
                if not isinstance(value, Unpicklable):
                    return value
                why = value.reason
        raise ResultUnavailable(
            f"The value of job {self.id} is unavailable: {why or 'it is no longer there'}",
            job_id=self.id,
        )

    @property
    def future(self) -> Future[Any]:
        """The Dask future of the job's value, which pins the value on the cluster.

        Raises
        ------
        SchedulerError
            If no Dask scheduler is known here.
        ResultUnavailable
            If the value is no longer on the cluster.
        """
        from girder_dask.client import futures

        # A failed attempt, and a restarted scheduler, leave a future without a value.
        if self._future is None or self._future.status not in ("pending", "finished"):
            self._future = futures.future_of(self.id)
        return self._future

    def _pin(self, future: Future[Any]) -> None:
        """Keep a future, which pins the value on the cluster for the lifetime of this object."""
        if self._future is None:
            self._future = future

    def cancel(self) -> None:
        """Cancel the job. It is CANCELED once none of its code runs any longer."""
        get_backend().cancel(self.id)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """Return a live card for Jupyter."""
        from girder_dask.client import job_card

        return job_card.mimebundle(self, include=include, exclude=exclude)


class MapResult(JobResult):
    """The parent job of a :meth:`girder_dask.Task.map`, and its child jobs.

    Parameters
    ----------
    job
        The document of the parent job.
    results
        The child jobs, in the order of the calls.
    """

    def __init__(self, job: Mapping[str, Any], results: Iterable[JobResult]) -> None:
        super().__init__(job)
        #: The child jobs, in the order of the calls.
        self.results: Sequence[JobResult] = (
            results if isinstance(results, Sequence) else tuple(results)
        )

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Any:
        return iter(self.results)

    def __reduce__(self) -> tuple[Any, ...]:
        return MapResult, (self._job, self.results)

    def __repr__(self) -> str:
        return f"<MapResult of {len(self.results):,} jobs: {super().__repr__()[1:-1]}>"

    def get(self, timeout: float | None = None) -> list[Any]:
        """Wait for all jobs and return their values, in the order of the calls.

        Raises
        ------
        JobFailed
            If a job ended in ERROR. The error is that of the first such job.
        JobCanceled
            If they were canceled.
        TimeoutError
            If they have not all ended after ``timeout`` seconds.
        GirderDaskError
            The other errors of :meth:`JobResult.get`.
        """
        self.wait(timeout)
        if self.status == JobStatus.ERROR:
            self._raise_first()
        if self.status == JobStatus.CANCELED:
            raise JobCanceled(f"Job {self.id} was canceled.", job_id=self.id)
        values = []
        for jobs in self._batches():
            prefetch(jobs)
            values += [job.get() for job in jobs]
        return values

    def _batches(self) -> Iterator[Sequence[JobResult]]:
        for start in range(0, len(self.results), _MAX_JOBS_PER_REQUEST):
            yield self.results[start : start + _MAX_JOBS_PER_REQUEST]

    def _raise_first(self) -> None:
        for jobs in self._batches():
            states = get_backend().load_jobs([job.id for job in jobs])
            failed = {str(s["_id"]) for s in states if s["status"] == JobStatus.ERROR}
            for job in jobs:
                if job.id in failed:
                    job.get()
        raise GirderDaskError(f"Job {self.id} failed; see its log.")


def prefetch(results: Iterable[JobResult]) -> None:
    """Load the results of many jobs at once, so that their ``get()`` sends no request."""
    jobs = list(results)
    if len(jobs) < 2:
        return
    backend = get_backend()
    unknown = [job.id for job in jobs if not job._has_ended()]  # noqa: SLF001
    loaded = backend.load_jobs(unknown) if unknown else []
    states = {str(state["_id"]): state for state in loaded}
    stored = backend.load_results([job.id for job in jobs])
    for job in jobs:
        job._apply_fetched(states.get(job.id), stored.get(job.id))  # noqa: SLF001
