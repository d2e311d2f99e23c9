"""One run of a job on a worker: inputs, call, result, outputs, clean-up.

Nothing that a task does gets past here: it may raise anything, call ``sys.exit()`` or be
missing. The end of the run and the rest of its log are one event.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from girder_dask import context, logs
from girder_dask.context import JobManager, Request, RunningJob
from girder_dask.errors import JobCanceled, JobFailed, JobTimeout, TaskNotFoundError
from girder_dask.failures import Place, name_of, summary, tell, tell_missing
from girder_dask.jobs import JobSpec, JobStatus
from girder_dask.leaves import map_leaves
from girder_dask.outbox import Outbox, RunOutlet
from girder_dask.payload import Call, open_call, pack_value
from girder_dask.task import find_task
from girder_dask.transforms import is_transform

__all__ = ["Run", "Station"]

logger = logging.getLogger(__name__)

# A run that the scheduler does not hear for this long must not push outputs.
_CONFIRM_TIME = 300.0
# A task that swallows an interruption is interrupted again.
_INTERRUPT_PAUSE = 1.0


@dataclass(slots=True)
class Station:
    """What a worker gives to the runs on it.

    ``api_url`` is Girder's REST API as this worker reaches it, None to use what Girder
    says of itself. ``max_result`` is in bytes.
    """

    place: Place
    outbox: Outbox
    directory: Path
    api_url: str | None
    max_result: int
    runs: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _End:
    """How a run ended. ``value`` is for Dask, ``result`` the same pickled for Girder."""

    status: JobStatus
    value: Any = None
    result: bytes | None = None
    error: str | None = None
    exception: BaseException | None = None


class Run:
    """One run of a job.

    Parameters
    ----------
    spec
        What to run.
    station
        The worker it runs on.
    """

    def __init__(self, spec: JobSpec, station: Station) -> None:
        self.spec = spec
        self.station = station
        self._outlet: RunOutlet = station.outbox.open(spec)
        self._manager = JobManager(self._outlet, JobStatus.QUEUED)
        self._transforms: list[Any] = []
        self._work_dir: Path | None = None
        self._lock = threading.Lock()
        self._timed_out = False
        self._thread: int | None = None  # the thread to interrupt, while user code may run

    def __call__(self) -> Any:
        """Run, and return what the function returned.

        Raises
        ------
        Exception
            What the function raised; JobFailed where that is no ``Exception``, JobCanceled
            when the job was canceled.
        """
        self.station.runs[self.spec.id] = self
        try:
            with logs.capturing(self._outlet.log):
                end = self._end()
        finally:
            if self.station.runs.get(self.spec.id) is self:
                del self.station.runs[self.spec.id]
        self._outlet.finish(end.status, result=end.result, error=end.error)
        if end.exception is None:
            return end.value
        if isinstance(end.exception, Exception):
            raise end.exception
        raise JobFailed(f"Job {self.spec.id} failed: {end.error}", job_id=self.spec.id)

    def _end(self) -> _End:
        """Run to the end, whatever that is."""
        token = context.current.set(None)
        try:
            try:
                return self._run()
            finally:
                self._out_of_reach()
        except BaseException as e:  # noqa: BLE001 - a task may raise anything at all
            self._out_of_reach()  # an interruption may have come just before
            return self._failed(e)
        finally:
            self._clean_up()
            context.current.reset(token)

    def _run(self) -> _End:
        prefix = f"job-{self.spec.id}-"
        self._work_dir = Path(tempfile.mkdtemp(prefix=prefix, dir=self._directory()))
        job = self._running_job(self._work_dir)
        context.current.set(job)
        with self._lock:
            self._thread = threading.get_ident()
        return self._work(job)

    def _directory(self) -> Path:
        self.station.directory.mkdir(parents=True, exist_ok=True)
        return self.station.directory

    def _running_job(self, work_dir: Path) -> RunningJob:
        import girder_client

        api_url = self.station.api_url or self.spec.api_url
        client = None
        if api_url is not None:
            client = girder_client.GirderClient(apiUrl=api_url)
            client.token = self.spec.token
        request = Request(
            id=self.spec.id,
            attempt=self.spec.attempt,
            hostname=self.station.place.hostname,
            girder_api_url=api_url,
        )
        return RunningJob(
            id=self.spec.id,
            title=self.spec.title,
            job_manager=self._manager,
            girder_client=client,
            work_dir=work_dir,
            request=request,
        )

    def _work(self, job: RunningJob) -> _End:
        call, function = self._open()
        args, kwargs = self._fetch(job, call)
        self._enter(JobStatus.RUNNING)
        try:
            with self._time_limit():
                value = function(*args, **kwargs)
        except BaseException:
            self._tell_hooks(call)
            raise
        self._stop_if_canceled()
        kept, note = self._keep(value)
        if call.hooks:
            self._enter(JobStatus.PUSHING_OUTPUT)
            if not self._outlet.confirm(_CONFIRM_TIME):
                raise JobCanceled("The job was given to another worker.", job_id=self.spec.id)
            value = self._push(job, call, value)
            kept, note = self._keep(value)
        return _End(JobStatus.SUCCESS, value=value, result=kept, error=note)

    def _open(self) -> tuple[Call, Callable[..., Any]]:
        call = open_call(self.spec.payload)
        return call, call.function or find_task(self.spec.task)

    def _fetch(self, job: RunningJob, call: Call) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        found: list[Any] = []
        map_leaves(lambda v: found.append(v) if is_transform(v) else None, [call.args, call.kwargs])
        if not found:
            return call.args, call.kwargs
        self._enter(JobStatus.FETCHING_INPUT)

        def fetch(value: Any) -> Any:
            return self._bound(job, value).transform() if is_transform(value) else value

        return map_leaves(fetch, call.args), map_leaves(fetch, dict(call.kwargs))

    def _bound(self, job: RunningJob, transform: Any) -> Any:
        """Hand a transform the client, directory and job of this run."""
        self._stop_if_canceled()
        for name, value in (("gc", job.girder_client), ("work_dir", job.work_dir)):
            if hasattr(transform, name):
                setattr(transform, name, value)
        if hasattr(transform, "job"):
            transform.job = {"_id": job.id, "title": job.title}
        self._transforms.append(transform)
        return transform

    def _push(self, job: RunningJob, call: Call, value: Any) -> Any:
        """Give each element of a tuple to the hook at its place; a single value to the first."""
        results = list(value) if isinstance(value, tuple) else [value]
        for i, hook in enumerate(call.hooks[: len(results)]):
            if callable(getattr(hook, "transform", None)):
                results[i] = self._bound(job, hook).transform(results[i])
        return tuple(results) if isinstance(value, tuple) else results[0]

    def _tell_hooks(self, call: Call) -> None:
        for hook in call.hooks:
            if callable(getattr(hook, "exception", None)):
                try:
                    hook.exception()
                except Exception:
                    logger.exception("exception() of a result hook of job %s", self.spec.id)

    def _keep(self, value: Any) -> tuple[bytes | None, str | None]:
        """Return the packed value, or None and why it is not kept."""
        try:
            data = pack_value(value)
        except Exception as e:  # noqa: BLE001 - any error of a foreign __reduce__
            return None, f"it cannot be pickled ({summary(e)})"
        if len(data) > self.station.max_result:
            return None, (
                f"it takes {len(data):,} bytes, more than the {self.station.max_result:,} that "
                "are kept with a job (girder.worker.max-result)"
            )
        return data, None

    def _failed(self, error: BaseException) -> _End:
        if isinstance(error, JobCanceled):
            self._outlet.write("The job was canceled.\n")
            return _End(JobStatus.CANCELED, exception=error)
        if isinstance(error, JobTimeout) and self._timed_out:
            text = f"The task ran longer than the {self.spec.timeout:g} s that it may.\n"
            self._outlet.write(text)
            return _End(JobStatus.ERROR, error=text.strip(), exception=error)
        if isinstance(error, ImportError) and not self._reached(JobStatus.RUNNING):
            text = tell_missing(self.spec, error, self.station.place)
        elif isinstance(error, TaskNotFoundError):
            text = f"The task cannot run on {self.station.place}. {error}\n"
        else:
            text = tell(error)
        self._outlet.write(text)
        return _End(JobStatus.ERROR, error=summary(error), exception=error)

    def _reached(self, status: JobStatus) -> bool:
        return self._manager.status in (status, JobStatus.PUSHING_OUTPUT, JobStatus.CANCELING)

    def _enter(self, status: JobStatus) -> None:
        with self._lock:
            if self._manager.status == JobStatus.CANCELING:
                raise JobCanceled(job_id=self.spec.id)
            self._manager.updateStatus(status)

    def _stop_if_canceled(self) -> None:
        if self._manager.status == JobStatus.CANCELING:
            raise JobCanceled(job_id=self.spec.id)

    def _clean_up(self) -> None:
        """Let transforms clean up and remove the work directory, whatever comes of it."""
        try:
            for transform in reversed(self._transforms):
                self._clean_up_after(transform)
        finally:
            if self._work_dir is not None:
                shutil.rmtree(self._work_dir, ignore_errors=True)

    def _clean_up_after(self, transform: Any) -> None:
        if not callable(getattr(transform, "cleanup", None)):
            return
        try:
            transform.cleanup()
        except BaseException as e:  # noqa: BLE001 - must not hide how the run ended
            self._outlet.write(f"Cleaning up {name_of(transform)} failed: {summary(e)}\n")

    # -- being stopped, from other threads ------------------------------------------------

    def cancel(self) -> None:
        """Tell the task to stop: ``canceled`` becomes true."""
        with self._lock:
            self._manager.status = JobStatus.CANCELING

    def interrupt(self) -> None:
        """Raise JobCanceled in the task's thread, at its next Python instruction."""
        with self._lock:
            if self._thread is not None:
                _raise_in(self._thread, JobCanceled)

    @contextlib.contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Interrupt what runs within when it takes longer than the job may."""
        if self.spec.timeout is None:
            yield
            return
        over = threading.Event()
        threading.Thread(target=self._enforce_limit, args=(over,), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            with self._lock:
                if self._thread is not None:
                    _raise_in(self._thread, None)
        if self._timed_out:  # the task has swallowed the interruption
            raise JobTimeout(job_id=self.spec.id)

    def _enforce_limit(self, over: threading.Event) -> None:
        pause = self.spec.timeout
        while not over.wait(pause):
            with self._lock:
                if self._thread is not None and not over.is_set():
                    self._timed_out = True
                    _raise_in(self._thread, JobTimeout)
            pause = _INTERRUPT_PAUSE

    def _out_of_reach(self) -> None:
        with self._lock:
            if self._thread is not None:
                _raise_in(self._thread, None)
            self._thread = None


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    """Have a thread raise an exception at its next Python instruction; None takes it back."""
    target = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
