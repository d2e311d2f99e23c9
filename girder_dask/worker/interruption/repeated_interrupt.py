"""Repeated interruption of a task that catches interruptions, at each of its next lines."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from girder_dask.errors import CancelInterrupt, JobInterrupted, TimeoutInterrupt
from girder_dask.worker.interruption.guarded_frames import (
    frames_from,
    is_guarded_file,
    is_run_frame,
)

__all__ = ["repeated", "stop_repeating"]

_TRACER = "girder_dask repeated interrupt"


class _RepeatedInterrupt(JobInterrupted):
    """Interruption that is raised again at each next line of the code that has caught it.

    It ends when Python drops the tracer. It may cut the clean-up of a task short.
    """

    def __init__(self, message: str | None = None, *, job_id: str | None = None) -> None:
        super().__init__(message, job_id=job_id)
        kind = type(self).__mro__[2]  # the exception that is not repeated

        def trace(frame: FrameType, event: str, _argument: Any) -> Any:
            if is_guarded_file(frame.f_code.co_filename):
                return None
            if event == "line":
                raise kind(message, job_id=job_id)
            return trace

        trace.__qualname__ = _TRACER
        interrupted = sys._getframe(1)  # noqa: SLF001 - the only access
        for each in frames_from(interrupted, 1000):
            if is_run_frame(each):
                break
            if not is_guarded_file(each.f_code.co_filename):
                each.f_trace = trace
        sys.settrace(trace)


class _RepeatedCancel(_RepeatedInterrupt, CancelInterrupt):
    pass


class _RepeatedTimeout(_RepeatedInterrupt, TimeoutInterrupt):
    pass


_REPEATED: dict[type[JobInterrupted], type[JobInterrupted]] = {
    CancelInterrupt: _RepeatedCancel,
    TimeoutInterrupt: _RepeatedTimeout,
}


def repeated(exception: type[JobInterrupted]) -> type[JobInterrupted]:
    """Return the repeated form of an exception, for a task that ignores interruptions."""
    return _REPEATED.get(exception, exception)


def stop_repeating() -> None:
    """Stop the repeated interruption of the calling thread."""
    if getattr(sys.gettrace(), "__qualname__", None) == _TRACER:
        sys.settrace(None)
