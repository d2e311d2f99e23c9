"""Capture of the output of jobs: standard output and error, ``logging`` and ``warnings``.

Several jobs run at once in one worker process, each in a thread of its own. The output of a
job goes to its own :class:`~girder_dask.worker.job_log.log.JobLog`, because the replacements
installed here read the context of the writer.
:mod:`girder_dask.worker.propagation.hooks` carries that context into child threads and
thread pools, and gives subprocesses a pipe to the log.

* ``print``, ``sys.stdout.write`` and the like go to the log of the job they are called in, unless
  the job has put something else in their place
  (:mod:`girder_dask.worker.capture.standard_streams`).
* ``logging``: records from ``log_level`` on reach the log, whatever the handlers
  (:mod:`girder_dask.worker.capture.log_records`). What a job configures applies to that job only
  (:mod:`girder_dask.worker.capture.logger_state`). The worker's own log does not change.
* ``warnings`` are shown once for each place and job, by the filters of the job
  (:mod:`girder_dask.worker.capture.warnings_state`).

Known limits
------------
What C code writes to descriptor 1 or 2 inside the worker process itself, and what Python code
writes with ``os.write(1, …)``, cannot be told apart between threads. It goes to the worker's
own log. The same holds for ``faulthandler``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

from girder_dask.worker.capture import (
    import_time_state,
    log_records,
    logger_state,
    logging_factories,
    logging_handlers,
    standard_descriptors,
    standard_streams,
    warnings_state,
)
from girder_dask.worker.capture.module_properties import ModuleSnapshot
from girder_dask.worker.job_log import orphan_output
from girder_dask.worker.job_log.log import JobLog, capturing

__all__ = [
    "adopt_handlers",
    "capturing_run",
    "flushing_at_end",
    "install",
    "keep_import_time_state",
    "uninstall",
]

#: Attributes of ``logging`` that a task sets for the whole process. Each run restores them.
_CONSTANTS: tuple[tuple[Any, str], ...] = (
    (logging, "lastResort"),
    (logging, "raiseExceptions"),
    (logging.Formatter, "converter"),
    (logging.Formatter, "default_time_format"),
    (logging.Formatter, "default_msec_format"),
)

#: ``logging`` and ``warnings`` while output is captured.
_snapshots: list[ModuleSnapshot] = []

_is_installed = False
_install_lock = threading.Lock()


def install(log_level: int | str = logging.INFO) -> None:
    """Route output by job in this process. A second call does nothing.

    Parameters
    ----------
    log_level
        The lowest level of records that reach a job's log unless the job configures one, as
        a number or a name.

    Raises
    ------
    ValueError
        If ``log_level`` is not the name of a level.
    """
    global _is_installed
    with _install_lock:
        if _is_installed:
            return
        level = _level(log_level)
        orphan_output.set_stream(sys.stderr)
        standard_streams.install()
        standard_descriptors.install()
        logger_state.install(level)
        logging_handlers.install()
        log_records.install()
        logging_factories.install()
        warnings_state.install()
        _snapshots[:] = [
            ModuleSnapshot(logging, "Logger"),
            ModuleSnapshot(warnings, "_showwarnmsg"),
        ]
        _is_installed = True


def adopt_handlers() -> None:
    """Mark all handlers of ``logging`` as the job's, in a process with only one job."""
    logging_handlers.adopt_handlers()


def uninstall() -> None:
    """Restore what :func:`install` replaced, unless it has been replaced since."""
    global _is_installed
    with _install_lock:
        if not _is_installed:
            return
        _is_installed = False
        _snapshots.clear()
        warnings_state.uninstall()
        logging_factories.uninstall()
        log_records.uninstall()
        logging_handlers.uninstall()
        logger_state.uninstall()
        standard_descriptors.uninstall()
        standard_streams.uninstall()
        orphan_output.set_stream(None)


def _level(level: int | str) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ValueError(f"{level!r} is not the name of a logging level. Use one such as 'INFO'.")
    return number


# -- a run ---------------------------------------------------------------------------------


@contextlib.contextmanager
def capturing_run(log: JobLog, module: str = "") -> Iterator[JobLog]:
    """Capture the output of the calling thread while it runs a job.

    At the end, state that the job has set for itself is dropped, and state that it has changed for
    the process is restored, with a line in its log.

    Parameters
    ----------
    module
        The module of the job's function.
    """
    log.package = module.partition(".")[0] or None
    with capturing(log):
        standard_descriptors.begin_run(log)
        log.local_state.at_end(functools.partial(standard_descriptors.end_run, log))
        log.local_state.at_end(functools.partial(_restore_streams, log))
        log.local_state.at_end(functools.partial(_restore_constants, _constants()))
        try:
            yield log
        finally:
            log.local_state.end()
            log.enabled_levels.clear()


def keep_import_time_state(log: JobLog) -> None:
    """Treat the state that a job has set so far as set by the import of its function's module."""
    import_time_state.keep_import_time_state(log, log.package or "", _must_keep)


def _must_keep(key: Hashable) -> bool:
    return logger_state.is_of_logging(key) or warnings_state.is_of_warnings(key)


@contextlib.contextmanager
def flushing_at_end() -> Iterator[None]:
    """Flush everything that the block has written to the log of the current job when it ends."""
    try:
        yield
    finally:
        log_records.settle_records()
        standard_streams.flush_assigned()


def _restore_streams(log: JobLog) -> None:
    for name in standard_streams.restore():
        log.write(
            f"Something has replaced {name} in sys.__dict__, which all jobs of the worker "
            f"share. It was restored. Assign to sys.{name} instead.\n"
        )


def _constants() -> tuple[Any, ...]:
    return tuple(getattr(owner, name) for owner, name in _CONSTANTS)


def _restore_constants(values: tuple[Any, ...]) -> None:
    for snapshot in _snapshots:
        snapshot.restore()
    for (owner, name), value in zip(_CONSTANTS, values, strict=True):
        if getattr(owner, name) is not value:
            setattr(owner, name, value)
