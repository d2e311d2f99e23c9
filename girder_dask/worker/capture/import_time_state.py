"""State that modules set at import, once per process rather than once per job.

What a package sets for its own loggers applies to the process, as it does without jobs. Anything
else that the module of a task sets at import, such as ``logging.basicConfig()``, applies to the
jobs of this package: it is kept here and applied to later jobs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from types import FrameType
from typing import Any

from girder_dask.worker.job_log.log import JobLog

__all__ = ["importing_package", "keep_import_time_state"]

#: What the modules of each package have set in the job that imported them first.
_of_packages: dict[str, dict[Hashable, Any]] = {}

#: The package of functions from notebooks and scripts.
_NO_PACKAGE = ("", "__main__")


def importing_package() -> str | None:
    """Return the package whose module is being imported in the calling thread, if one is."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            return str(frame.f_globals.get("__name__", "")).partition(".")[0]
        frame = frame.f_back
    return None


def keep_import_time_state(log: JobLog, module: str, must_keep: Callable[[Hashable], bool]) -> None:
    """Keep the state set while the function of a job was loaded, and apply what was kept before.

    Parameters
    ----------
    module
        The module of the function.
    must_keep
        Returns True if the value of a name in the local state must be kept.
    """
    package = module.partition(".")[0]
    if package in _NO_PACKAGE:
        return
    kept = _of_packages.get(package, {})
    new = {key: _copy(value) for key, value in log.local_state.items() if must_keep(key)}
    if new:
        kept = _of_packages[package] = {**kept, **new}
    for key, value in kept.items():
        if key not in log.local_state:
            log.local_state[key] = _copy(value)
    if kept:
        log.enabled_levels.clear()


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, list) else value
