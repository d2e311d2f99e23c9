"""The tasks that are installed."""

from __future__ import annotations

import importlib
from typing import Any

from girder_dask.packages import modules_of_tasks
from girder_dask.task import Task

__all__ = ["discover"]


def discover() -> dict[str, Task[Any, Any]]:
    """Import every module that the entry point group ``girder_dask.tasks`` names.

    Returns
    -------
    dict
        The tasks by name, in order of their names.

    Raises
    ------
    ImportError
        If a module that is named cannot be imported.
    """
    found: dict[str, Task[Any, Any]] = {}
    for name in modules_of_tasks():
        module = importlib.import_module(name)
        found |= {value.name: value for value in vars(module).values() if isinstance(value, Task)}
    return dict(sorted(found.items()))
