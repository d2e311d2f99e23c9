"""Log records of jobs, each of which reaches its job's log once, whatever the handlers.

A record of a job goes to the handlers that the job sees, and to those of the worker that would get
it without a job. If none of them has written to the job's log, a line is added to it. The log
itself detects writes, so the kind of handler does not matter.

A record that a handler keeps for later (``QueueHandler`` with a listener, ``MemoryHandler`` with
a target) is settled by the second of the two: the logger, or the handler that gets it later.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import logging.handlers
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.capture import logger_state, logging_handlers
from girder_dask.worker.interruption.job_threads import threads_of
from girder_dask.worker.job_log.log import JobLog, current

__all__ = ["install", "settle_records", "uninstall"]

_LISTENERS = "logging listeners"
_PENDING = "logging pending"
_MAX_PENDING_RECORDS = 10_000

#: Seconds that the listeners of a job have to empty their queues when its function ends.
_DRAIN_TIMEOUT_S = 1.0
_POLL_INTERVAL_S = 0.005

#: Dask logs from its own threads, in the context of whichever job made a request.
_DASK = "distributed"

_formatter = logging.Formatter()
_lock = threading.RLock()
_passing = threading.local()
_patches = MonkeyPatches()


def install() -> None:
    """Route the records of jobs to their logs."""
    _patches.apply(logging.Logger, "handle", _handle)
    _patches.apply(logging.Logger, "callHandlers", _call_handlers)
    _patches.apply(logging.handlers.QueueListener, "start", _start_listener)
    _patches.apply(logging.handlers.QueueListener, "handle", _listen)
    _patches.apply(logging.handlers.MemoryHandler, "flush", _flush_memory)


def uninstall() -> None:
    """Undo :func:`install`."""
    _patches.undo()


# -- from the logger to its handlers -------------------------------------------------------


def _handle(original: Callable[..., None]) -> Callable[..., None]:
    def handle(self: logging.Logger, record: logging.LogRecord) -> None:
        log = current.get()
        if log is None:
            state = self.__dict__
            if state["filters"] or state["disabled"]:
                original(self, record)
            else:
                self.callHandlers(record)
        elif not logger_state.is_disabled(log, self):
            filters = log.local_state.get((self, "filters")) or self.__dict__["filters"]
            passed: Any = self.filter(record) if filters else True
            if passed:
                # From Python 3.12 on, a filter may return another record.
                _deliver(log, self, passed if isinstance(passed, logging.LogRecord) else record)

    return handle


def _deliver(log: JobLog, logger: logging.Logger, record: logging.LogRecord) -> None:
    outer: logging.LogRecord | None = getattr(_passing, "record", None)
    _passing.record = record
    try:
        with log.watch.watching() as wrote:
            logger.callHandlers(record)
            handlers, shown = list(_handlers(log, logger)), wrote()
            if any(_defers(log, handler) for handler in handlers):
                shown = shown or _is_redirected(log, handlers)
                shown = not _settle(log, logger, record, shown=shown)
            if not shown:
                _show(log, logger, record, handlers)
    finally:
        _passing.record = outer
    if outer is not None and _is_passed_on(outer, record):
        log.watch.mark_written()


def _is_passed_on(outer: logging.LogRecord, record: logging.LogRecord) -> bool:
    """Return True if a handler has derived one record from another, not logged one of its own."""
    with contextlib.suppress(Exception):  # their arguments may be wrong
        return outer.getMessage() in record.getMessage()
    return False


def _call_handlers(original: Callable[..., None]) -> Callable[..., None]:
    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        log = current.get()
        if log is None:
            if not _call_all(self, record):
                original(self, record)  # it uses logging.lastResort
            return
        for handler in _handlers(log, self):
            if record.levelno >= handler.level:
                handler.handle(record)
        if logger_state.is_enabled_in_process(self, record.levelno):
            token = current.set(None)  # the worker's handlers do not belong to the job
            try:
                _call_all(self, record, workers=True)
            finally:
                current.reset(token)

    return call_handlers


def _handlers(log: JobLog, logger: logging.Logger) -> Iterator[Any]:
    """Yield the handlers that a job sees, except null handlers."""
    if log.local_state.get((logger, "disabled")):
        return  # by dictConfig: its handlers get no records
    at: logging.Logger | None = logger
    while at is not None:
        for handler in logging_handlers.handlers_of_job(log, at):
            if not isinstance(handler, logging.NullHandler):
                yield handler
        at = at.parent if logger_state.propagates(log, at) else None


def _call_all(logger: Any, record: logging.LogRecord, *, workers: bool = False) -> bool:
    """Pass a record to the process's handlers, or only the worker's. Return True if any exist."""
    found = False
    while logger is not None:
        state = logger.__dict__
        for handler in state["handlers"]:
            found = True
            if record.levelno >= handler.level and not (
                workers and logging_handlers.is_made_in_job(handler)
            ):
                handler.handle(record)
        logger = logger.parent if state["propagate"] else None
    return found


# -- records that no handler has shown -------------------------------------------------------------


def _show(log: JobLog, logger: logging.Logger, record: logging.LogRecord, handlers: Any) -> None:
    if record.levelno < logger_state.effective_levels(log, logger)[1] or _is_dasks(log, logger):
        return
    if handlers and _is_redirected(log, handlers):
        return
    try:
        text = _formatter.format(record) + "\n"
    except Exception as e:  # noqa: BLE001 - its arguments may raise anything
        text = (
            f"A log record cannot be formatted ({type(e).__name__}: {e}):\n"
            f'  File "{record.pathname}", line {record.lineno}, in {record.funcName}\n'
            f"  Message: {record.msg!r}\n  Arguments: {record.args!r}\n"
        )
    if handlers:  # the job redirects its output, not these records
        log.write(text, "stderr")
    elif sys.stderr is not None:
        sys.stderr.write(text)


def _is_redirected(log: JobLog, handlers: list[Any]) -> bool:
    """Return True if a handler writes to a stream that the job has assigned to ``sys``."""
    assigned = [log.local_state[name] for name in ("stdout", "stderr") if name in log.local_state]
    if not assigned:
        return False
    return any(
        getattr(handler, "stream", None) is each for handler in handlers for each in assigned
    )


def _is_dasks(log: JobLog, logger: logging.Logger) -> bool:
    if logger.name.partition(".")[0] != _DASK:
        return False
    return threads_of(log) is None and bool(logging.getLogger(_DASK).__dict__["handlers"])


# -- handlers that keep a record for later -------------------------------------------------


def _defers(log: JobLog, handler: Any) -> bool:
    if isinstance(handler, logging.handlers.MemoryHandler):
        return handler.target is not None
    if not isinstance(handler, logging.handlers.QueueHandler):
        return False
    return any(
        each.queue is handler.queue and each._thread is not None  # noqa: SLF001
        for each in log.local_state.get(_LISTENERS, ())
    )


def _key(record: logging.LogRecord) -> Hashable:
    return record.name, record.created, record.thread, record.levelno, record.lineno


def _settle(log: JobLog, logger: Any, record: logging.LogRecord, *, shown: bool) -> bool:
    """Record one of two deliveries of a record. Return True after the second if none showed it."""
    with _lock:
        pending: dict[Hashable, Any] = log.local_state.setdefault(_PENDING, {})
        other = pending.pop(_key(record), None)
        if other is not None:
            return not (shown or other[0])
        pending[_key(record)] = (shown, logger, record)
        if len(pending) > _MAX_PENDING_RECORDS:
            del pending[next(iter(pending))]
        return False


def _pass_late(log: JobLog, record: logging.LogRecord, pass_on: Callable[[], Any]) -> None:
    with log.watch.watching() as wrote:
        pass_on()
        if _settle(log, None, record, shown=wrote()):
            _show(log, logging.getLogger(record.name), record, [])


def _start_listener(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def start(self: Any) -> Any:
        log = current.get()
        if log is not None:
            log.local_state.setdefault(_LISTENERS, []).append(self)
        return original(self)

    return start


def _listen(original: Callable[..., None]) -> Callable[..., None]:
    def handle(self: Any, record: Any) -> None:
        log = current.get()
        if log is None:
            original(self, record)
        else:
            _pass_late(log, record, lambda: original(self, record))

    return handle


def _flush_memory(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def flush(self: Any) -> None:
        log = current.get()
        if log is None or self.target is None:
            original(self)
            return
        self.acquire()
        try:
            records, self.buffer = self.buffer, []
            for record in records:
                _pass_late(log, record, functools.partial(self.target.handle, record))
        finally:
            self.release()

    return flush


def settle_records() -> None:
    """Write the records that handlers of the current job still hold to its log."""
    log = current.get()
    if log is None:
        return
    for handler in logging_handlers.handlers_made(log):
        with contextlib.suppress(Exception):  # a task's handler may raise anything
            handler.flush()
    for listener in log.local_state.get(_LISTENERS, ()):
        thread = listener._thread  # noqa: SLF001 - as above
        if thread is not None and thread.is_alive():
            _drain(listener.queue)
    with _lock:
        pending = log.local_state.pop(_PENDING, {})
    for shown, logger, record in pending.values():
        if logger is not None and not shown:
            _show(log, logger, record, [])


def _drain(queue: Any) -> None:
    """Wait until the listener of a queue has emptied it, for a limited time."""
    deadline = time.monotonic() + _DRAIN_TIMEOUT_S
    with contextlib.suppress(Exception):  # the queue may be of any type
        while getattr(queue, "unfinished_tasks", 0) or not queue.empty():
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_INTERVAL_S)
