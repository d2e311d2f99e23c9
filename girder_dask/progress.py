"""Progress of loops: ``progress()``."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import TypeVar

from girder_dask.client import progress_bar
from girder_dask.errors import CancelInterrupt
from girder_dask.tasks.running_job import JobManager, RunningJob, current

__all__ = ["progress"]

T = TypeVar("T")

_REPORT_INTERVAL_S = 0.1

#: The managers to which a loop reports. Loops inside that loop do not report.
_reporting: weakref.WeakSet[JobManager] = weakref.WeakSet()


def progress(
    iterable: Iterable[T], total: float | None = None, message: str | None = None
) -> Iterator[T]:
    """Yield the elements of an iterable, and report the progress of the loop.

    In a task, the loop sets the job's progress, and stops when the job is canceled. Of nested
    loops, only the outermost reports. Outside a task, a progress bar is drawn in a terminal or a
    notebook.

    Parameters
    ----------
    iterable
        The elements.
    total
        The number of elements, by default ``len(iterable)`` if it has a length.
    message
        The text that the job shows with its progress.

    Raises
    ------
    JobInterrupted
        Between two elements, if the job was canceled.

    Examples
    --------
    >>> from girder_dask import progress
    >>> [n * n for n in progress(range(4), message='Squaring')]
    [0, 1, 4, 9]
    """
    if total is None:
        with contextlib.suppress(TypeError):
            total = len(iterable)  # type: ignore[arg-type]
    job = current.get()
    if job is None:
        return _drawn(iterable, total, message)
    return _reported(iterable, total, message, job)


def _drawn(iterable: Iterable[T], total: float | None, message: str | None) -> Iterator[T]:
    with contextlib.closing(progress_bar.draw(total, message)) as drawn:
        for element in iterable:
            yield element
            drawn.update(1)


def _reported(
    iterable: Iterable[T], total: float | None, message: str | None, job: RunningJob
) -> Iterator[T]:
    manager = job.job_manager
    is_outermost = manager not in _reporting
    reporter = _Reporter(manager if is_outermost else None, total, message)
    if is_outermost:
        _reporting.add(manager)
    try:
        for element in iterable:
            if job.canceled:
                raise CancelInterrupt(
                    f"Job {job.id} was canceled after {reporter.count} elements of a loop.",
                    job_id=job.id,
                )
            yield element
            reporter.advance()
    finally:
        if is_outermost:
            _reporting.discard(manager)
        reporter.finish()


class _Reporter:
    """Reports the progress of a loop to a job manager, throttled."""

    def __init__(
        self, manager: JobManager | None, total: float | None, message: str | None
    ) -> None:
        self._manager = manager
        self._next = time.monotonic() + _REPORT_INTERVAL_S
        self.count = 0
        if manager is not None:
            # For Girder, a total of 0 is an unknown one.
            manager.updateProgress(total=total or 0, current=0, message=message)

    def advance(self) -> None:
        """Count an element."""
        self.count += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REPORT_INTERVAL_S
            self.finish()

    def finish(self) -> None:
        """Report the current count."""
        if self._manager is not None:
            self._manager.updateProgress(current=self.count)
