"""The record factory, the logger class and the names of levels, separate for each job.

Replacements that slow down every record are installed when a job first needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.job_log.log import current

__all__ = ["install", "uninstall"]

_FACTORY = "logging record factory"
_CLASS = "logging logger class"
_NAMES = "logging level names"

_patches = MonkeyPatches()
#: The first level that a job has renamed, if any.
_renames: list[int] = []


def install() -> None:
    """Give each job its own factories and names."""
    _patches.apply(logging, "setLogRecordFactory", _set_factory)
    _patches.apply(logging, "getLogRecordFactory", _get_factory)
    _patches.apply(logging, "setLoggerClass", _set_class)
    _patches.apply(logging, "getLoggerClass", _get_class)
    _patches.apply(
        logging.Manager, "loggerClass", lambda _: property(_get_own_class, _set_own_class)
    )
    _patches.apply(logging, "addLevelName", _add_level_name)


def uninstall() -> None:
    """Undo :func:`install`."""
    _patches.undo()
    _renames.clear()
    factory = logging._logRecordFactory  # type: ignore[attr-defined]  # noqa: SLF001
    if isinstance(factory, _Factory):
        logging.setLogRecordFactory(factory.process)


# -- records -------------------------------------------------------------------------------


def _set_factory(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_log_record_factory(factory: Any) -> None:
        log = current.get()
        if log is None:
            original(factory)
            return
        log.local_state[_FACTORY] = factory
        if not isinstance(logging._logRecordFactory, _Factory):  # type: ignore[attr-defined]  # noqa: SLF001
            original(_Factory(logging._logRecordFactory))  # type: ignore[attr-defined]  # noqa: SLF001

    return set_log_record_factory


def _get_factory(original: Callable[[], Any]) -> Callable[[], Any]:
    def get_log_record_factory() -> Any:
        log, factory = current.get(), original()
        if isinstance(factory, _Factory):
            return (
                factory.process if log is None else log.local_state.get(_FACTORY, factory.process)
            )
        return factory

    return get_log_record_factory


class _Factory:
    """Record factory of the current job, or else of the process."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        log = current.get()
        factory = self.process if log is None else log.local_state.get(_FACTORY, self.process)
        return factory(*args, **kwargs)


# -- loggers -------------------------------------------------------------------------------


def _set_class(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_logger_class(klass: Any) -> None:
        log = current.get()
        if log is None:
            original(klass)
        else:
            logging.root.manager.setLoggerClass(klass)

    return set_logger_class


def _get_class(original: Callable[[], Any]) -> Callable[[], Any]:
    def get_logger_class() -> Any:
        log = current.get()
        return (None if log is None else log.local_state.get(_CLASS)) or original()

    return get_logger_class


def _get_own_class(manager: Any) -> Any:
    log = current.get()
    return (None if log is None else log.local_state.get(_CLASS)) or manager.__dict__["loggerClass"]


def _set_own_class(manager: Any, value: Any) -> None:
    log = current.get()
    if log is None or "loggerClass" not in manager.__dict__:
        manager.__dict__["loggerClass"] = value
    else:
        log.local_state[_CLASS] = value


# -- names of levels -----------------------------------------------------------------------


def _add_level_name(original: Callable[[int, str], None]) -> Callable[[int, str], None]:
    def add_level_name(level: int, name: str) -> None:
        log = current.get()
        names: Any = logging._levelToName  # noqa: SLF001
        numbers: Any = logging._nameToLevel  # noqa: SLF001
        if log is None or names.get(level, name) == name:
            original(level, name)
            return
        numbers.setdefault(name, level)
        log.local_state.setdefault(_NAMES, {})[level] = name
        if not _renames:
            _renames.append(level)
            _patches.apply(logging, "getLevelName", _get_level_name)

    return add_level_name


def _get_level_name(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def get_level_name(level: Any) -> Any:
        log = current.get()
        own = None if log is None else log.local_state.get(_NAMES)
        return own[level] if own and level in own else original(level)

    return get_level_name
