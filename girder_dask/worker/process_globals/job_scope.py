"""What keeps that which one run does to its process from the other jobs there.

A run has a working directory, a umask and environment variables of its own. What belongs to the
whole process, or to a thread that will run other jobs, is put back when the run ends, and the log
says so.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from girder_dask.utils import working_directory
from girder_dask.worker.process_globals import environ
from girder_dask.worker.process_globals.restoration import (
    SettingsRestorer,
    changed_settings,
    log_line,
    restore_setting,
)
from girder_dask.worker.process_globals.shared_settings import (
    directory_settings,
    process_settings,
    setting_functions,
    thread_settings,
)

__all__ = ["JobScope", "install", "uninstall"]

logger = logging.getLogger(__name__)

# Where a relative path leads to nothing, for a run whose directory cannot be made.
_NOWHERE = "/proc/self"

_patches: list[tuple[Any, str, Any, Any]] = []
_lock = threading.Lock()


@functools.cache
def _settings_restorer() -> SettingsRestorer:
    items = process_settings()
    if working_directory.unsupported_reason() is not None:
        items += directory_settings()
    return SettingsRestorer(items)


def install() -> None:
    """Prepare this process for jobs. Does nothing the second time."""
    with _lock:
        if _patches:
            return
        # A relative path would lead into the directory of the job that imports.
        sys.path[:] = [_absolute(path) for path in sys.path]
        tempfile.gettempdir()  # not that of the first job that asks
        environ.install()
        state = _settings_restorer()
        for module, name, item in setting_functions():
            if hasattr(module, name):
                _patch(module, name, functools.partial(_tracking, state, item))
        if working_directory.unsupported_reason() is None:
            _patch(os, "umask", working_directory.recording_umask)
        else:
            for name in ("chdir", "fchdir"):
                _patch(os, name, functools.partial(_tracking, state, "the working directory"))
            _patch(os, "umask", functools.partial(_tracking, state, "the umask"))


def uninstall() -> None:
    """Put back the functions that :func:`install` replaced, unless somebody has done so since."""
    with _lock:
        while _patches:
            module, name, original, replacement = _patches.pop()
            if getattr(module, name) is replacement:
                setattr(module, name, original)


def _absolute(path: str) -> str:
    """Return the path of a directory; what is none, as a name for import hooks, stays."""
    return os.path.abspath(path) if os.path.isdir(path or ".") else path  # noqa: PTH100, PTH112


def _patch(module: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(module, name)
    replacement = functools.wraps(original)(make(original))
    setattr(module, name, replacement)
    _patches.append((module, name, original, replacement))


def _tracking(
    state: SettingsRestorer, item: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    def set_and_note(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        state.note(item)
        return result

    return set_and_note


class JobScope:
    """What one run has of its own, and what is put back after it.

    All is called in the thread of the run.

    Parameters
    ----------
    directory
        Returns the working directory of the task, which it makes.
    write
        Appends to the job's log.
    """

    def __init__(self, directory: Callable[[], Path], write: Callable[[str], object]) -> None:
        self._directory = directory
        self._write = write
        self._ending = contextlib.ExitStack()
        self._is_apart = False

    def begin(self) -> None:
        """Part from the other threads of the process, whose directory this one is still in."""
        self._is_apart = self._ending.enter_context(working_directory.own_working_directory())

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Leave what is set within, by modules that are imported, for all jobs."""
        with _settings_restorer().importing():
            yield

    def enter(self) -> None:
        """Give what follows the directory and the variables of the job."""
        within = self._ending.enter_context
        within(self._thread_restored())
        within(_settings_restorer().restoring(self._write))
        within(environ.job_environment())
        if self._is_apart:
            self._enter_directory()

    def _enter_directory(self) -> None:
        try:
            directory = self._directory()
            os.chdir(directory)
        except OSError as e:
            # Most tasks need none.
            self._write(
                f"The working directory of the job cannot be made ({e}), so relative paths lead "
                "to nothing.\n"
            )
            os.chdir(_NOWHERE)
        else:
            self._ending.callback(_forget_modules, directory, len(sys.modules))

    def follow(self, directory: str) -> None:
        """Go to where the process of the task was in the end, for hooks that look there."""
        if self._is_apart:
            with contextlib.suppress(OSError):  # it is gone
                os.chdir(directory)

    @contextlib.contextmanager
    def _thread_restored(self) -> Iterator[None]:
        """Put back what the run has changed of its thread."""
        items = thread_settings()
        before = [item.read() for item in items]
        yield
        for i in changed_settings(items, before, [item.read() for item in items]):
            problem = restore_setting(items[i], before[i])
            if items[i].is_logged or problem is not None:
                self._write(log_line(items[i], "The task", "thread", problem))

    def end(self) -> None:
        """Return to the directory of the process, and put back what was changed."""
        self._ending.close()


def _forget_modules(directory: Path, known: int) -> None:
    """Forget modules of a job's own directory: another job has others of the same names."""
    if len(sys.modules) == known:
        return
    inside = f"{directory}{os.sep}"
    # Other threads import meanwhile, and a list of the items may let them: garbage is collected
    # while it is made. A copy is made in one go.
    for name, module in sys.modules.copy().items():
        if str(getattr(module, "__file__", None) or "").startswith(inside):
            sys.modules.pop(name, None)
