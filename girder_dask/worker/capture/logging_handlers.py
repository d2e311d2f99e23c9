"""Handlers of ``logging`` that jobs create. The others are the worker's, which jobs do not see."""

from __future__ import annotations

import contextlib
import functools
import logging
import logging.config
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.capture import standard_streams
from girder_dask.worker.capture.import_time_state import importing_package
from girder_dask.worker.job_log.log import JobLog, current

__all__ = [
    "adopt_handlers",
    "close_handlers",
    "handlers_made",
    "handlers_of_job",
    "install",
    "is_made_in_job",
    "uninstall",
]

_HANDLERS = "logging handlers"
_FLAG = "_girder_dask_of_job"

_patches = MonkeyPatches()


def install() -> None:
    """Record the handlers that jobs create, and keep jobs from closing others."""
    _patches.apply(logging, "_addHandlerRef", _add_handler_ref)
    _patches.apply(logging, "shutdown", _shutdown)
    _patches.apply(logging.config, "_clearExistingHandlers", _clear_existing_handlers)


def uninstall() -> None:
    """Undo :func:`install`."""
    _patches.undo()


def is_made_in_job(handler: Any) -> bool:
    """Return True if a handler was created in a job. The others are the worker's."""
    return _FLAG in getattr(handler, "__dict__", ())


def adopt_handlers() -> None:
    """Mark all handlers as created in a job, in a process with only one job."""
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]  # noqa: SLF001
        handler = reference()
        if handler is not None:
            handler.__dict__[_FLAG] = True
            if "stream" in handler.__dict__:
                handler.stream = standard_streams.job_stream(handler.stream)


def handlers_of_job(log: JobLog, logger: logging.Logger) -> Sequence[Any]:
    """Return the handlers that a job sees at a logger. The result must not be changed."""
    own: list[Any] | None = log.local_state.get((logger, "handlers"))
    if own is not None:
        return own
    process: list[Any] = logger.__dict__["handlers"]
    return [each for each in process if is_made_in_job(each)] if process else ()


def handlers_made(log: JobLog) -> list[Any]:
    """Return the handlers that a job has created, newest first."""
    found = (reference() for reference in reversed(log.local_state.get(_HANDLERS, ())))
    return [handler for handler in found if handler is not None]


def close_handlers(log: JobLog) -> None:
    """Flush and close the handlers that a job has created, as Python does at exit."""
    for handler in handlers_made(log):
        with contextlib.suppress(Exception), _held(handler):
            handler.flush()
            handler.close()
    log.local_state.pop(_HANDLERS, None)


@contextlib.contextmanager
def _held(handler: Any) -> Iterator[None]:
    handler.acquire()
    try:
        yield
    finally:
        handler.release()


def _add_handler_ref(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def add_handler_ref(handler: Any) -> None:
        original(handler)
        log = current.get()
        if log is not None:
            handler.__dict__[_FLAG] = True
            if importing_package() is None:
                if _HANDLERS not in log.local_state:
                    log.local_state[_HANDLERS] = []
                    log.local_state.at_end(functools.partial(close_handlers, log))
                log.local_state[_HANDLERS].append(weakref.ref(handler))

    return add_handler_ref


def _shutdown(original: Callable[..., None]) -> Callable[..., None]:
    def shutdown(*args: Any, **kwargs: Any) -> None:
        log = current.get()
        if log is None:
            original(*args, **kwargs)
        else:
            close_handlers(log)

    return shutdown


def _clear_existing_handlers(original: Callable[[], None]) -> Callable[[], None]:
    def clear_existing_handlers() -> None:
        log = current.get()
        if log is None:
            original()
        else:
            close_handlers(log)

    return clear_existing_handlers
