"""The outcome of a run: the report to Girder, and the value or exception for Dask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.worker.failures import Failure, describe_error, exception_of, was_killed
from girder_dask.worker.isolation.task_process import ProcessFailed
from girder_dask.worker.run.control import RunControl

__all__ = ["RunOutcome", "failed", "hand_over_if_leaving"]

# How long a run that hands its job over waits for the acknowledgement of its last events.
_LAST_EVENTS_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The end of a run. ``value`` is for Dask, ``result`` the same value packed for Girder."""

    status: JobStatus
    value: Any = None
    result: bytes | None = None
    error: str | None = None
    failure: Failure | None = None

    def report(self, control: RunControl) -> Exception | None:
        """Report the end of the run. Return the exception for Dask, None after a success."""
        failure = self.failure
        retry = None if failure is None else failure.retry
        control.sink.finish(
            self.status if control.reports_end and retry is None else None,
            result=self.result,
            error=self.error if retry is None else None,
            retry=retry if control.reports_end else None,
            exception=failure.exception if failure is not None else None,
            permanent=failure is not None and failure.permanent,
        )
        return None if failure is None else exception_of(failure, control.spec.id)


def failed(failure: Failure, control: RunControl) -> RunOutcome:
    """Write to the log how a run failed, and return its outcome."""
    outcome = RunOutcome(failure.status, error=failure.error, failure=failure)
    if not control.reports_end:  # the next attempt reports its own end
        return outcome
    control.write(failure.text)
    if control.is_canceled and failure.status == JobStatus.ERROR and not control.timed_out:
        # The task has reacted to JobCanceled, or to the end of its processes.
        control.write("The job was canceled.\n")
        canceled = replace(failure, status=JobStatus.CANCELED)
        return RunOutcome(JobStatus.CANCELED, failure=canceled)
    return outcome


def hand_over_if_leaving(
    error: BaseException, control: RunControl, is_leaving: Callable[[], bool]
) -> None:
    """Hand the job over to another run if the end of the worker has caused the error.

    Parameters
    ----------
    is_leaving
        Returns True if the worker is closing. It may block for a moment, so it is called only
        when a signal has ended a process of the task.
    """
    failure = error.failure if isinstance(error, ProcessFailed) else None
    killed = was_killed(error) if failure is None else failure.killed
    if not killed or control.is_canceled or control.timed_out or not is_leaving():
        return
    if failure is None or failure.exception is not None:
        control.write(describe_error(error) if failure is None else failure.text)
    control.write("A process of the task was ended together with its worker.\n")
    control.sink.confirm(_LAST_EVENTS_TIMEOUT_S)
    control.drop()
