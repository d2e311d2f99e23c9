"""The state of loggers, separate for each job.

The attributes of loggers become properties. In a job they show the process's value until the job
sets its own, which is kept with its log (see :mod:`girder_dask.worker.job_log.job_local_state`):

* The level of the root logger is at most the log level of jobs.
* ``logging.disable()`` and ``disabled`` of other jobs and of the worker have no effect.
* Handlers that were created outside of jobs are hidden, so that ``basicConfig()`` works, and
  ``force=True`` or ``dictConfig()`` do not close the worker's.

A package that configures its own loggers while it is imported configures them for the process.
"""

from __future__ import annotations

import functools
import logging
import logging.config
import sys
from collections.abc import Callable, Hashable
from typing import Any

from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.capture.import_time_state import importing_package
from girder_dask.worker.capture.logging_handlers import is_made_in_job
from girder_dask.worker.job_log.log import JobLog, current, living_logs

__all__ = [
    "effective_levels",
    "install",
    "is_disabled",
    "is_enabled_in_process",
    "is_of_logging",
    "propagates",
    "uninstall",
]

_ATTRIBUTES = ("level", "disabled", "propagate", "handlers", "filters")
_DISABLE = "logging.disable"

#: Value of ``disabled`` for a logger that ``dictConfig`` has disabled because it existed before.
#: This is rarely intended, so its records reach the job's log, though not its handlers.
_BY_CONFIG = "by configuration"

#: The lowest level of records that reach a job's log.
_log_level = logging.INFO


_patches = MonkeyPatches()


def install(level: int) -> None:
    """Give loggers a separate state in each job."""
    global _log_level
    _log_level = level
    for name in _ATTRIBUTES:
        _patches.apply(logging.Logger, name, functools.partial(_property, name))
    _patches.apply(logging.Logger, "isEnabledFor", lambda _: _is_enabled_for)
    _patches.apply(logging.Manager, "disable", lambda _: property(_get_disable, _set_disable))
    _patches.apply(logging.Manager, "_clear_cache", _clear_cache)
    _clear_level_caches()


def uninstall() -> None:
    """Undo :func:`install`."""
    _patches.undo()
    _clear_level_caches()
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]  # noqa: SLF001


def _clear_level_caches() -> None:
    for log in living_logs():
        log.enabled_levels.clear()


# -- attributes of loggers -----------------------------------------------------------------


def _property(name: str, _original: Any) -> property:
    is_list = name in ("handlers", "filters")

    def get(logger: logging.Logger) -> Any:
        log = current.get()
        if log is None or name not in logger.__dict__ or not _is_shared(logger):
            return _of_process(logger, name)
        return _list(log, logger, name) if is_list else _value(log, logger, name)

    def set_(logger: logging.Logger, value: Any) -> None:
        log = current.get()
        if log is None or name not in logger.__dict__ or not _is_shared(logger):
            logger.__dict__[name] = value
            _clear_level_caches()
        elif _imports_itself(logger):
            logger.__dict__[name] = value
            logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]  # noqa: SLF001
        else:
            if name == "disabled" and value and _is_called_by_config():
                value = _BY_CONFIG
            log.local_state[logger, name] = value
            log.enabled_levels.clear()

    return property(get, set_)


def _of_process(logger: logging.Logger, name: str) -> Any:
    try:
        return logger.__dict__[name]
    except KeyError:
        raise AttributeError(f"{type(logger).__name__!r} has no attribute {name!r}") from None


def _value(log: JobLog, logger: logging.Logger, name: str) -> Any:
    value = log.local_state.get((logger, name))
    if name == "disabled":
        return bool(value)
    if value is None:
        value = logger.__dict__[name]
        if name == "level" and logger is logging.root:
            value = min(value, _log_level)
    return value


def _list(log: JobLog, logger: logging.Logger, name: str) -> list[Any]:
    # The caller may change the list.
    value: list[Any] | None = log.local_state.get((logger, name))
    if value is None:
        process: list[Any] = logger.__dict__[name]
        if _imports_itself(logger):
            return process
        value = [each for each in process if name == "filters" or is_made_in_job(each)]
        log.local_state[logger, name] = value
    return value


def _is_shared(logger: logging.Logger) -> bool:
    """Return False for a logger that is being created, or that is not found by its name."""
    return "manager" in logger.__dict__ or logger is logging.root


def _imports_itself(logger: logging.Logger) -> bool:
    package = importing_package()
    return package is not None and logger.name.partition(".")[0] == package


def _is_called_by_config() -> bool:
    return sys._getframe(2).f_globals.get("__name__") == "logging.config"  # noqa: SLF001


def is_of_logging(key: Hashable) -> bool:
    """Return True if a name in a job's local state belongs to this module."""
    return key == _DISABLE or (
        isinstance(key, tuple) and bool(key) and isinstance(key[0], logging.Logger)
    )


def propagates(log: JobLog, logger: logging.Logger) -> bool:
    """Return True if a logger passes records to its parent in a job."""
    own = log.local_state.get((logger, "propagate"))
    return bool(logger.__dict__["propagate"] if own is None else own)


# -- levels --------------------------------------------------------------------------------


def _is_enabled_for(self: logging.Logger, level: int) -> bool:
    log = current.get()
    if log is None:
        state = self.__dict__
        try:
            return bool(not state["disabled"] and state["_cache"][level])
        except KeyError:
            return is_enabled_in_process(self, level)
    try:
        return log.enabled_levels[self, level]
    except KeyError:
        enabled = not (log.local_state.get(_DISABLE, 0) >= level or is_disabled(log, self))
        enabled = enabled and level >= effective_levels(log, self)[0]
        log.enabled_levels[self, level] = enabled
        return enabled


def is_enabled_in_process(logger: Any, level: int) -> bool:
    """Return True if a logger is enabled for a level outside of jobs."""
    state = logger.__dict__
    if state["disabled"]:
        return False
    try:
        return bool(state["_cache"][level])
    except KeyError:
        with logging._lock:  # type: ignore[attr-defined]  # noqa: SLF001
            enabled = logger.manager.__dict__["_disable"] < level and level >= _level(logger)
            state["_cache"][level] = enabled
        return bool(enabled)


def _level(logger: logging.Logger | None) -> int:
    while logger is not None:
        if logger.__dict__["level"]:
            return int(logger.__dict__["level"])
        logger = logger.parent
    return logging.NOTSET


def is_disabled(log: JobLog, logger: logging.Logger) -> bool:
    """Return True if a job has disabled a logger."""
    if not _is_shared(logger):
        return bool(logger.__dict__["disabled"])
    return log.local_state.get((logger, "disabled"), False) not in (False, 0, _BY_CONFIG)


def effective_levels(log: JobLog, logger: logging.Logger | None) -> tuple[int, int]:
    """Return the level of a logger in a job, and the lowest level that reaches the job's log."""
    own = log.local_state
    while logger is not None:
        level = own.get((logger, "level"))
        if level or (level is not None and logger is logging.root):
            return level, level
        if level is None:
            level = logger.__dict__["level"]
            if logger is logging.root:
                return min(level, _log_level), _log_level
            if level:
                return level, max(level, _log_level)
        logger = logger.parent
    return logging.NOTSET, _log_level


def _get_disable(manager: Any) -> int:
    log = current.get()
    return int(manager.__dict__["_disable"] if log is None else log.local_state.get(_DISABLE, 0))


def _set_disable(manager: Any, value: int | str) -> None:
    log = current.get()
    level = logging._checkLevel(value)  # type: ignore[attr-defined]  # noqa: SLF001
    if log is None or "_disable" not in manager.__dict__:
        manager.__dict__["_disable"] = level
        _clear_level_caches()
    else:
        log.local_state[_DISABLE] = level
        log.enabled_levels.clear()


def _clear_cache(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def clear_cache(manager: Any) -> None:
        original(manager)
        _clear_level_caches()

    return clear_cache
