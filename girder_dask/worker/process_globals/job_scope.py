"""The scope of one run in its process, which keeps its changes from other jobs.

A run has its own working directory, umask and environment variables. Settings of the whole process,
or of a thread that will run other jobs, are restored when the run ends, with a line in its log.
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

# For a run whose own directory cannot be created. No file can be created in this one.
_FALLBACK_DIRECTORY = "/proc/self"

_patches: list[tuple[Any, str, Any, Any]] = []
_lock = threading.Lock()


@functools.cache
def _settings_restorer() -> SettingsRestorer:
    settings = process_settings()
    if working_directory.unsupported_reason() is not None:
        settings += directory_settings()
    return SettingsRestorer(settings)


def install() -> None:
    """Prepare this process for jobs. A second call does nothing."""
    with _lock:
        if _patches:
            return
        # A relative path would be resolved in the directory of the job that imports.
        sys.path[:] = [_absolute(path) for path in sys.path]
        tempfile.gettempdir()  # before the first job sets it by its environment
        environ.install()
        state = _settings_restorer()
        for module, name, setting in setting_functions():
            if hasattr(module, name):
                _patch(module, name, functools.partial(_tracking, state, setting))
        if working_directory.unsupported_reason() is None:
            _patch(os, "umask", working_directory.recording_umask)
        else:
            for name in ("chdir", "fchdir"):
                _patch(os, name, functools.partial(_tracking, state, "the working directory"))
            _patch(os, "umask", functools.partial(_tracking, state, "the umask"))


def uninstall() -> None:
    """Restore the functions that :func:`install` replaced, unless they were replaced again."""
    with _lock:
        while _patches:
            module, name, original, replacement = _patches.pop()
            if getattr(module, name) is replacement:
                setattr(module, name, original)


def _absolute(path: str) -> str:
    """Return the absolute path of a directory. Names for import hooks do not change."""
    return os.path.abspath(path) if os.path.isdir(path or ".") else path  # noqa: PTH100, PTH112


def _patch(module: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(module, name)
    replacement = functools.wraps(original)(make(original))
    setattr(module, name, replacement)
    _patches.append((module, name, original, replacement))


def _tracking(
    state: SettingsRestorer, setting: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    def set_and_record(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        state.record(setting)
        return result

    return set_and_record


class JobScope:
    """The scope of one run. All methods are called in the thread of the run.

    Parameters
    ----------
    directory
        Creates and returns the working directory of the task.
    write
        Appends to the job's log.
    """

    def __init__(self, directory: Callable[[], Path], write: Callable[[str], object]) -> None:
        self._directory = directory
        self._write = write
        self._ending = contextlib.ExitStack()
        self._has_directory = False

    def begin(self) -> None:
        """Separate the working directory of this thread, which at first is that of the process."""
        self._has_directory = self._ending.enter_context(working_directory.own_working_directory())

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Keep settings that modules change while the block imports them, for all jobs."""
        with _settings_restorer().importing():
            yield

    def enter(self) -> None:
        """Enter the directory of the job, and separate its variables and settings."""
        within = self._ending.enter_context
        within(self._thread_restored())
        within(_settings_restorer().restoring(self._write))
        within(environ.job_environment())
        if self._has_directory:
            self._enter_directory()

    def _enter_directory(self) -> None:
        try:
            directory = self._directory()
            os.chdir(directory)
        except OSError as e:
            # Most tasks need no directory.
            self._write(
                f"The working directory of the job cannot be created ({e}), so relative paths "
                "cannot be used.\n"
            )
            os.chdir(_FALLBACK_DIRECTORY)
        else:
            self._ending.callback(_forget_modules, directory, len(sys.modules))

    def follow(self, directory: str) -> None:
        """Enter the last directory of the task's process, in which result hooks look for files."""
        if self._has_directory:
            with contextlib.suppress(OSError):  # the directory is gone
                os.chdir(directory)

    @contextlib.contextmanager
    def _thread_restored(self) -> Iterator[None]:
        """Restore the settings of its thread that the run has changed."""
        settings = thread_settings()
        before = [setting.read() for setting in settings]
        yield
        for i in changed_settings(settings, before, [setting.read() for setting in settings]):
            problem = restore_setting(settings[i], before[i])
            if settings[i].is_logged or problem is not None:
                self._write(log_line(settings[i], "The task", "thread", problem))

    def end(self) -> None:
        """Return to the directory of the process, and restore settings."""
        self._ending.close()


def _forget_modules(directory: Path, known: int) -> None:
    """Remove modules from a job's directory: other jobs may have modules of the same names."""
    if len(sys.modules) == known:
        return
    inside = f"{directory}{os.sep}"
    # Other threads may import while a list of the items is built, as that may collect garbage.
    # copy() is atomic.
    for name, module in sys.modules.copy().items():
        if str(getattr(module, "__file__", None) or "").startswith(inside):
            sys.modules.pop(name, None)
