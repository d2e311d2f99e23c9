"""Waiting for many jobs with few requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from girder_dask.client import progress_bar
from girder_dask.client.backend import get_backend
from girder_dask.client.result import JobResult, prefetch
from girder_dask.jobs import FINAL

__all__ = ["as_completed", "gather"]

_MIN_POLL_S, _MAX_POLL_S, _POLL_GROWTH = 0.02, 2.0, 1.4


def as_completed(results: Any, timeout: float | None = None) -> Iterator[Any]:
    """Yield jobs as they end, in whatever state.

    Parameters
    ----------
    results
        An iterable of :class:`JobResult`, or what ``task.map()`` or a group returned. A map or
        group in the iterable stands for its jobs.
    timeout
        Seconds from the first request to the end of the last job. None: without limit.

    Yields
    ------
    JobResult
        Each job, in the order in which they end. ``get()`` of it does not wait.

    Raises
    ------
    TimeoutError
        If some jobs have not ended by then. They continue.
    GirderError
        If Girder does not answer.

    Examples
    --------
    >>> list(as_completed([]))
    []
    """
    return _JobPoller(_jobs(results)).ended(timeout)


def gather(
    results: Any,
    timeout: float | None = None,
    progress: bool | None = None,
    errors: Literal["raise", "return"] = "raise",
) -> list[Any]:
    """Wait for jobs and return their values, in the order of the jobs.

    Parameters
    ----------
    results
        An iterable of :class:`JobResult`, or what ``task.map()`` or a group returned. A map or
        group in the iterable yields the list of its values.
    timeout
        Seconds to wait. None: without limit.
    progress
        Whether a progress bar is shown. By default, it is in a terminal and in a notebook.
    errors
        ``'raise'``: the first job that ends in ERROR or is canceled raises its exception at once.
        ``'return'``: the list has exceptions in place of such values.

    Returns
    -------
    list

    Raises
    ------
    JobFailed, JobCanceled, ResultUnavailable
        The errors of :meth:`JobResult.get`, unless ``errors='return'``. The other jobs continue.
    TimeoutError
        If some jobs have not ended by then. They continue.

    Examples
    --------
    >>> gather([])
    []
    """
    if errors not in ("raise", "return"):
        raise ValueError(f"errors must be 'raise' or 'return', not {errors!r}.")
    shape = _shape(results)
    poller = _JobPoller(_leaves(shape))
    values: dict[int, Any] = {}
    drawn = progress_bar.draw(len(poller.jobs), "jobs", show=progress)
    try:
        for batch in poller.batches(timeout):
            prefetch([result for result in batch if isinstance(result, JobResult)])
            for result in batch:
                values[id(result)] = _value(result, errors)
                drawn.update(1)
    except KeyboardInterrupt:
        _report_interrupt(poller)
        raise
    finally:
        drawn.close()
    return [_filled(part, values) for part in shape]


def _value(result: Any, errors: str) -> Any:
    try:
        return result.get()
    except Exception as e:
        if errors == "raise":
            raise
        return e


def _report_interrupt(poller: _JobPoller) -> None:
    left = len(poller.left)
    if left:
        print(
            f"\nInterrupted. {left:,} of {len(poller.jobs):,} jobs continue. "
            "result.cancel() ends one.",
            file=sys.stderr,
        )


# -- the jobs -------------------------------------------------------------------------------


def _shape(results: Any) -> list[Any]:
    """Return jobs as nested lists, in which maps and groups are lists of their jobs."""
    if isinstance(results, Mapping | str):
        raise TypeError(f"Pass a list of JobResults, not a {type(results).__name__}.")
    inner = getattr(results, "results", None)
    if inner is None:
        inner = [results] if _is_job(results) else list(results)
    return [
        part if _is_job(part) and not hasattr(part, "results") else _shape(part) for part in inner
    ]


def _is_job(value: Any) -> bool:
    return isinstance(value, JobResult) or (hasattr(value, "ready") and hasattr(value, "get"))


def _leaves(shape: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for part in shape:
        found += _leaves(part) if isinstance(part, list) else [part]
    return found


def _jobs(results: Any) -> list[Any]:
    return _leaves(_shape(results))


def _filled(part: Any, values: Mapping[int, Any]) -> Any:
    if isinstance(part, list):
        return [_filled(inner, values) for inner in part]
    return values[id(part)]


class _JobPoller:
    """Polls many jobs until they have ended."""

    def __init__(self, jobs: Sequence[Any]) -> None:
        #: Each object once.
        self.jobs = list({id(job): job for job in jobs}.values())
        self.left = {id(job): job for job in self.jobs}

    def ended(self, timeout: float | None) -> Iterator[Any]:
        """Yield jobs as they end."""
        for batch in self.batches(timeout):
            yield from batch

    def batches(self, timeout: float | None) -> Iterator[list[Any]]:
        """Yield the jobs that have ended since the last request."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _MIN_POLL_S
        while self.left:
            found = self._poll()
            for job in found:
                del self.left[id(job)]
            if found:
                yield found
            if not self.left:
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(
                    f"{len(self.left):,} of {len(self.jobs):,} jobs have not ended after {timeout} "
                    f"s, the first of them {next(iter(self.left.values())).id}. They continue."
                )
            pause = _MIN_POLL_S if found else min(pause * _POLL_GROWTH, _MAX_POLL_S)
            time.sleep(pause if left is None else min(pause, left))

    def _poll(self) -> list[Any]:
        """Return the jobs that have ended since the last request, in that order."""
        pending = [job for job in self.left.values() if isinstance(job, JobResult)]
        ids = {job.id for job in pending}
        states = {str(s["_id"]): s for s in (get_backend().load_jobs(list(ids)) if ids else [])}
        others = [job for job in self.left.values() if not isinstance(job, JobResult)]
        found = [job for job in others if job.ready()]
        for job in pending:
            state = states.get(job.id)
            if state is None:
                found.append(job)  # deleted or not readable: get() raises the reason
                continue
            job._apply_state(state)  # noqa: SLF001 - of this package
            if state["status"] in FINAL:
                found.append(job)
        return sorted(found, key=lambda job: _update_time(states.get(str(job.id))))


def _update_time(state: Mapping[str, Any] | None) -> str:
    return str((state or {}).get("updated") or "")
