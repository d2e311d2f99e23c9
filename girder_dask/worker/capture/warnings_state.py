"""The state of ``warnings``, separate for each job.

The module gets a class with properties: its C code reads ``filters`` and ``_showwarnmsg`` from the
module as attributes. A job begins with the filters of the process, and shows a warning
once for each place, where Python does so once for each place and process. Actions that depend on
earlier warnings become ``always``, or one job would suppress warnings of others. The job itself
records the warnings that it has shown.

Python 3.14 keeps filters in contexts. There, and where the module lacks an expected name, warnings
go to the log of the job, and all jobs share the filters of the process.
"""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Callable, Hashable
from pathlib import PurePath
from typing import Any

from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.capture.import_time_state import importing_package
from girder_dask.worker.capture.module_properties import add_properties, remove_properties
from girder_dask.worker.job_log.log import JobLog, current

__all__ = ["install", "is_of_warnings", "uninstall"]

_WARNINGS = "warnings"
_CAPTURED = "logging.captureWarnings"

#: Attributes that a job may assign for itself.
_NAMES = ("filters", "showwarning", "_showwarnmsg_impl", "formatwarning", "warn", "warn_explicit")

#: Functions that are replaced, since they use the module's own names or affect all jobs.
_FUNCTIONS = ("_showwarnmsg", "_add_filter", "resetwarnings", "_filters_mutated")
_NEEDED = (*_NAMES, *_FUNCTIONS, "_showwarning_orig", "_formatwarning_orig", "_formatwarnmsg_impl")

#: Most warnings that are recorded as shown.
_MAX_SHOWN_WARNINGS = 10_000


class _Action(str):
    """``always`` for Python, with the action it stands for: ``default``, ``module`` or ``once``."""

    __slots__ = ("meant",)
    meant: str

    @classmethod
    def of(cls, meant: str) -> _Action:
        action = cls("always")
        action.meant = meant
        return action


_ACTIONS = {meant: _Action.of(meant) for meant in ("default", "module", "once")}
_LAST = (_ACTIONS["default"], None, Warning, None, 0)


class _Filters(list[Any]):
    """The filters of a job. ``catch_warnings`` creates new ones, with no warning shown yet."""

    def __init__(self, filters: Any) -> None:
        super().__init__((_ACTIONS.get(each[0], each[0]), *each[1:]) for each in filters)
        if _LAST not in self:
            self.append(_LAST)
        self.shown: set[Hashable] = set()


_patches = MonkeyPatches()
_class: type[types.ModuleType] | None = None


def install() -> None:
    """Give each job its own filters, if this Python allows it."""
    global _class
    _patches.apply(logging, "captureWarnings", _capture_warnings)
    if sys.version_info >= (3, 14) or any(name not in vars(warnings) for name in _NEEDED):
        _patches.apply(warnings, "_showwarnmsg", _show_to_job)
        return
    _patches.apply(warnings, "_showwarnmsg", _show)
    _patches.apply(warnings, "_add_filter", _add_filter)
    _patches.apply(warnings, "resetwarnings", _reset)
    _patches.apply(warnings, "_filters_mutated", _mutated)
    _class = add_properties(warnings, {name: _property(name) for name in _NAMES})


def uninstall() -> None:
    """Undo :func:`install`."""
    global _class
    remove_properties(warnings, _class)
    _class = None
    _patches.undo()


def is_of_warnings(key: Hashable) -> bool:
    """Return True if a name in a job's local state belongs to this module."""
    return isinstance(key, tuple) and bool(key) and key[0] == _WARNINGS


# -- attributes of the module -------------------------------------------------------------------


def _property(name: str) -> property:
    key = (_WARNINGS, name)

    def get(module: Any) -> Any:
        log = current.get()
        if log is None:
            return module.__dict__[name]
        if name == "filters":
            return _filters(log)
        value = log.local_state.get(key)
        if value is None:
            value = _OF_JOBS.get(name) or module.__dict__[name]
        return value

    def set_(module: Any, value: Any) -> None:
        log = current.get()
        if log is None:
            module.__dict__[name] = value
        elif name == "filters":
            log.local_state[key] = value if isinstance(value, _Filters) else _Filters(value)
        elif value is _OF_JOBS.get(name) or value is module.__dict__.get(f"_{name}_orig"):
            log.local_state.pop(key, None)
        else:
            log.local_state[key] = value

    return property(get, set_)


def _filters(log: JobLog) -> _Filters:
    key = (_WARNINGS, "filters")
    found: _Filters | None = log.local_state.get(key)
    if found is None:
        found = log.local_state[key] = _Filters(vars(warnings)["filters"])
    return found


def _add_filter(original: Callable[..., None]) -> Callable[..., None]:
    def add_filter(*item: Any, append: bool) -> None:
        log = current.get()
        if log is None or _is_for_all(item):
            original(*item, append=append)
        if log is None:
            return
        filters, item = _filters(log), (_ACTIONS.get(item[0], item[0]), *item[1:])
        if append:
            if item not in filters:
                filters.insert(len(filters) - (filters[-1] == _LAST), item)
            return
        if item in filters[:-1]:
            filters.remove(item)
        filters.insert(0, item)

    return add_filter


def _is_for_all(item: tuple[Any, ...]) -> bool:
    """Return True if a module that is being imported filters its own warnings.

    Such a filter of a library applies to the process, because an import happens once. A filter
    for all warnings of a builtin category applies to the job.
    """
    _, message, category, module, _ = item
    package = importing_package()
    log = current.get()
    if package is None or log is None or package == log.package:
        return False
    own = getattr(category, "__module__", "").partition(".")[0] == package
    return own or message is not None or module is not None


def _reset(original: Callable[[], None]) -> Callable[[], None]:
    def resetwarnings() -> None:
        log = current.get()
        if log is None:
            original()
        else:
            log.local_state[_WARNINGS, "filters"] = _Filters(())

    return resetwarnings


def _mutated(original: Callable[[], None]) -> Callable[[], None]:
    def filters_mutated() -> None:
        if current.get() is None:
            original()

    return filters_mutated


# -- showing -------------------------------------------------------------------------------


def _show(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def show(msg: Any) -> None:
        log = current.get()
        if log is None:
            original(msg)
        elif not _record_shown(log, msg):
            show_warning = log.local_state.get((_WARNINGS, "showwarning"))
            if show_warning is not None:
                show_warning(
                    msg.message, msg.category, msg.filename, msg.lineno, msg.file, msg.line
                )
            else:
                log.local_state.get((_WARNINGS, "_showwarnmsg_impl"), _write)(msg)

    return show


def _show_to_job(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def show(msg: Any) -> None:
        replaced = warnings.showwarning is not warnings._showwarning_orig  # type: ignore[attr-defined]  # noqa: SLF001
        if current.get() is None or replaced:
            original(msg)
        else:
            warnings._showwarnmsg_impl(msg)  # type: ignore[attr-defined]  # noqa: SLF001

    return show


def _write(msg: Any) -> None:
    stream = sys.stderr if msg.file is None else msg.file
    if stream is not None:
        stream.write(_text(msg))


def _text(msg: Any) -> str:
    state: Any = vars(warnings)
    form = warnings.formatwarning
    if form is not state["_formatwarning_orig"]:
        return form(msg.message, msg.category, msg.filename, msg.lineno, msg.line)
    return str(state["_formatwarnmsg_impl"](msg))


def _show_warning(
    message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    msg = warnings.WarningMessage(message, category, filename, lineno, file, line)
    log = current.get()
    (_write if log is None else log.local_state.get((_WARNINGS, "_showwarnmsg_impl"), _write))(msg)


#: Replacements in jobs of functions that others may have replaced.
_OF_JOBS: dict[str, Any] = {"showwarning": _show_warning, "_showwarnmsg_impl": _write}


def _record_shown(log: JobLog, msg: Any) -> bool:
    """Record a warning as shown. Return True if it was shown before and must be suppressed."""
    filters, text = _filters(log), str(msg.message)
    meant = next(
        (getattr(each[0], "meant", "") for each in filters if _matches(each, msg, text)), ""
    )
    if not meant:
        return False
    places: dict[str, tuple[Hashable, ...]] = {
        "once": (),
        "module": (msg.filename,),
        "default": (msg.filename, msg.lineno),
    }
    key = (text, msg.category, *places[meant])
    if key in filters.shown:
        return True
    if len(filters.shown) < _MAX_SHOWN_WARNINGS:
        filters.shown.add(key)
    return False


def _matches(item: tuple[Any, ...], msg: Any, text: str) -> bool:
    action, message, category, module, lineno = item
    return (
        action == "always"  # other actions do not show it
        and issubclass(msg.category, category)
        and lineno in (0, msg.lineno)
        and (message is None or _is_like(message, text))
        and (module is None or any(_is_like(module, each) for each in _modules(msg.filename)))
    )


def _is_like(pattern: Any, text: str) -> bool:
    return bool(pattern == text if isinstance(pattern, str) else pattern.match(text))


def _modules(filename: str) -> list[str]:
    """Return possible names of the module in a file, since a warning has only the file."""
    parts = PurePath(filename).with_suffix("").parts
    return ["__main__", *(".".join(parts[-n:]) for n in range(1, len(parts) + 1))]


# -- logging.captureWarnings ---------------------------------------------------------------


def _capture_warnings(original: Callable[[bool], None]) -> Callable[[bool], None]:
    def capture_warnings(capture: bool) -> None:
        log = current.get()
        if log is None or _class is None:
            original(capture)
        elif capture and _CAPTURED not in log.local_state:
            log.local_state[_CAPTURED] = warnings.showwarning
            warnings.showwarning = logging._showwarning  # type: ignore[attr-defined]  # noqa: SLF001
        elif not capture and _CAPTURED in log.local_state:
            warnings.showwarning = log.local_state.pop(_CAPTURED)

    return capture_warnings
