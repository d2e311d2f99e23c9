"""Capture of what jobs write: standard output and error, ``logging`` and ``warnings``.

Several jobs run at once in one worker process, each in a thread of its own. What a job
writes lands in its own :class:`~girder_dask.logs.JobLog`, because the streams installed
here look at the context of the writer. :mod:`girder_dask.logs.inherit` carries that context into
child threads and thread pools, and gives subprocesses a pipe to the log.

* ``print``, ``sys.stdout.write`` and the like go to the log of the job they are called in.
* ``logging`` without any configuration prints messages from ``log_level`` on to the log, and
  does as always where a task configures handlers. Handlers that the operator gave to the
  root logger before go on writing to the worker's own log.
* ``warnings`` are shown once for each place and job. Python shows them once for each place
  and process, which would leave the second job without.

Known limits
------------
What C code writes to descriptor 1 or 2 inside the worker process itself, and what Python code
writes with ``os.write(1, …)``, cannot be told apart between threads. It goes to the worker's
own log. The same holds for ``faulthandler``. ``contextlib.redirect_stdout`` and
``warnings.catch_warnings`` are global to the process by their nature, so jobs at the same
time in one process see those of each other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import warnings
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO, cast

from girder_dask.logs import descriptors, leftovers, standard
from girder_dask.logs.joblog import JobLog, capturing, current

__all__ = [
    "JobLog",
    "capturing",
    "current",
    "finishing",
    "install",
    "running",
    "uninstall",
]

#: The filter that lets every warning through to :func:`_show_warning`, after all others.
_ALWAYS = ("always", None, Warning, None, 0)

#: Most warnings that are remembered as shown, for a job and for the process.
_MAX_WARNED = 10_000


@dataclass
class _Installation:
    """What was there before, and what has been put in its place."""

    root_handler: _JobHandler | None
    new_last_resort: _JobHandler
    last_resort: logging.Handler | None
    root_level: int
    new_root_level: int
    show_warning: Any
    added_filter: bool
    quieted: list[logging.Handler] = field(default_factory=list)
    warned: set[Hashable] = field(default_factory=set)


_installed: _Installation | None = None
_install_lock = threading.Lock()


def install(log_level: int | str = logging.INFO) -> None:
    """Start to route output by job in this process. Does nothing the second time.

    Parameters
    ----------
    log_level
        The least level of log records that reach a job's log while no task configures
        logging, as a number or a name. The root logger is lowered to it if it is still at
        its default.

    Raises
    ------
    ValueError
        If ``log_level`` is not the name of a level.
    """
    global _installed
    with _install_lock:
        if _installed is not None:
            return
        level = _level(log_level)
        root = logging.getLogger()
        state = _Installation(
            root_handler=None,
            new_last_resort=_JobHandler(level),
            last_resort=logging.lastResort,
            root_level=root.level,
            new_root_level=root.level,
            show_warning=warnings.showwarning,
            added_filter=_ALWAYS not in warnings.filters,
        )
        leftovers.set_stream(sys.stderr)
        standard.install()
        descriptors.install()
        _install_logging(state, root, level)
        warnings.simplefilter("always", append=True)
        warnings.showwarning = _show_warning
        _installed = state


def uninstall() -> None:
    """Put back what :func:`install` replaced, unless somebody has replaced it since."""
    global _installed
    with _install_lock:
        state, _installed = _installed, None
        if state is None:
            return
        descriptors.uninstall()
        standard.uninstall()
        leftovers.set_stream(None)
        _uninstall_logging(state)
        if warnings.showwarning is _show_warning:
            warnings.showwarning = state.show_warning
        if state.added_filter and _ALWAYS in warnings.filters:
            cast("list[Any]", warnings.filters).remove(_ALWAYS)


def _level(level: int | str) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ValueError(f"{level!r} is not the name of a logging level. Use one such as 'INFO'.")
    return number


@contextlib.contextmanager
def running(log: JobLog) -> Iterator[JobLog]:
    """Have the calling thread run the job whose log this is, to its end.

    What the job has set for itself is dropped at the end, and what it has changed for the process
    is put back, with a line in its log.
    """
    with capturing(log):
        descriptors.begin(log)
        log.own.at_end(functools.partial(descriptors.end, log))
        log.own.at_end(functools.partial(_put_streams_back, log))
        try:
            yield log
        finally:
            log.own.end()


def _put_streams_back(log: JobLog) -> None:
    for name in standard.put_back():
        log.write(
            f"Something has replaced {name} in sys.__dict__, which holds for all jobs of the "
            f"worker; it was put back. Assign to sys.{name} instead.\n"
        )


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Have what a function has written in the log of the current job when it ends."""
    try:
        yield
    finally:
        standard.flush_assigned()


# -- logging -------------------------------------------------------------------------------


class _JobHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints messages as ``logging.lastResort`` does, inside a job from another level on."""

    def __init__(self, level: int, operators: Iterable[logging.Handler] = ()) -> None:
        logging.Handler.__init__(self, min(level, logging.WARNING))
        self._job_level = level
        self._operators = frozenset(operators)

    @property
    def stream(self) -> TextIO:
        """Whatever ``sys.stderr`` is now."""
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> Any:
        """Pass what nobody else shows to this job."""
        if current.get() is None:
            # On the root logger it stands beside the operator's handlers, for jobs alone.
            if self._operators or record.levelno < logging.WARNING:
                return False
        elif record.levelno < self._job_level or self._is_shown(record):
            return False
        return super().filter(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        """Say whether a handler that is not the operator's has the record."""
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(h is not self and h not in self._operators for h in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def _from_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _install_logging(state: _Installation, root: logging.Logger, level: int) -> None:
    logging.lastResort = state.new_last_resort
    operators = list(root.handlers)
    if operators:
        # The last resort is not asked where the operator has configured the root logger.
        state.root_handler = _JobHandler(level, operators)
        root.addHandler(state.root_handler)
    if root.level == logging.WARNING and level < logging.WARNING:
        state.new_root_level = level
        root.setLevel(level)
        for handler in operators:
            # The operator's own log stays as quiet as it was.
            handler.addFilter(_from_warning)
            state.quieted.append(handler)


def _uninstall_logging(state: _Installation) -> None:
    root = logging.getLogger()
    if logging.lastResort is state.new_last_resort:
        logging.lastResort = state.last_resort
    if state.root_handler is not None:
        root.removeHandler(state.root_handler)
    for handler in state.quieted:
        handler.removeFilter(_from_warning)
    if root.level == state.new_root_level:
        root.setLevel(state.root_level)


# -- warnings ------------------------------------------------------------------------------


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning once for each place: in a job's log, or as before outside of jobs."""
    state, log = _installed, current.get()
    if state is not None:
        warned = state.warned if log is None else log.warned
        # If our filter is not the last one any more, then it was asked for all of them.
        if file is None and warnings.filters and warnings.filters[-1] == _ALWAYS:
            key = (str(message), category, filename, lineno)
            if key in warned:
                return
            if len(warned) < _MAX_WARNED:
                warned.add(key)
    if log is not None or state is None:
        stream = file or sys.stderr
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))
    else:
        state.show_warning(message, category, filename, lineno, file, line)
