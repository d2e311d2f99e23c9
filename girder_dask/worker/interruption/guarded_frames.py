"""Frames in which a thread must not be interrupted, recognized by the paths of their files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from girder_dask.utils.thread_frames import thread_frames

__all__ = [
    "current_frame",
    "frames_from",
    "is_guarded",
    "is_guarded_file",
    "is_locking",
    "is_run_frame",
    "is_stream_frame",
    "user_position",
]

_PACKAGE = str(Path(__file__).parents[2])
_WORKER = f"{_PACKAGE}/worker"

#: An exception in one of these files would break state that jobs share.
_GUARDED_PATHS = (
    f"{_WORKER}/capture/",
    f"{_WORKER}/job_log/",
    f"{_WORKER}/outbox.py",
    f"{_WORKER}/run_sink.py",
    logging.__file__,
)
_STREAM_PATHS = tuple(
    f"{_WORKER}/capture/{name}.py" for name in ("routing_streams", "standard_streams")
)
#: Files of the frames from which the code of a task is called.
_RUN_PATHS = tuple(
    f"{_WORKER}/{name}.py" for name in ("run/runner", "isolation/child", "interruption/job_threads")
)
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_STANDARD_LIBRARY = str(Path(threading.__file__).parent)

#: An exception in one of these methods leaves a lock behind.
_LOCK_METHODS = frozenset({"acquire", "release", "__enter__", "__exit__", "_acquire_restore"})

#: Most frames to inspect.
_MAX_DEPTH = 40


def current_frame(ident: int) -> FrameType | None:
    """Return the innermost frame of a thread, None if it has ended."""
    return thread_frames().get(ident)


def frames_from(frame: FrameType | None, max_depth: int = _MAX_DEPTH) -> Iterator[FrameType]:
    """Yield a frame and its callers."""
    while frame is not None and max_depth > 0:
        yield frame
        frame, max_depth = frame.f_back, max_depth - 1


def is_guarded(frame: FrameType | None) -> bool:
    """Return True if an exception in a frame would harm more than its job."""
    if frame is None or frame.f_code is threading.Condition.wait.__code__:
        return False  # a waiting frame holds no lock
    if frame.f_code.co_filename == _IMPORT_SYSTEM or is_locking(frame):
        return True
    return any(each.f_code.co_filename.startswith(_GUARDED_PATHS) for each in frames_from(frame))


def is_locking(frame: FrameType | None) -> bool:
    """Return True if a frame takes or releases a lock, and may hold it already."""
    if frame is None or frame.f_code.co_name not in _LOCK_METHODS:
        return False
    file = frame.f_code.co_filename
    return file.startswith(_PACKAGE) or _is_standard(file)


def is_stream_frame(frame: FrameType) -> bool:
    """Return True if a frame is a method of a stream that leads to a log."""
    return frame.f_code.co_filename.startswith(_STREAM_PATHS)


def is_run_frame(frame: FrameType) -> bool:
    """Return True if a frame is one from which the code of a job is called."""
    return frame.f_code.co_filename.startswith(_RUN_PATHS)


def is_guarded_file(file: str) -> bool:
    """Return True if a file belongs to this package, or no exception may be raised in it."""
    return file.startswith((_PACKAGE, *_GUARDED_PATHS))


def user_position(ident: int) -> str:
    """Return a description of the position of the user's code in a thread, or an empty text."""
    for frame in frames_from(current_frame(ident), 1000):
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE) and not _is_standard(file):
            return f"{file}, line {frame.f_lineno}, in {frame.f_code.co_name}"
    return ""


def _is_standard(file: str) -> bool:
    return file.startswith((_STANDARD_LIBRARY, "<frozen")) and "-packages" not in file
