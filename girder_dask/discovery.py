"""The tasks that are installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from girder_dask.packages import extensions, modules_of, modules_of_tasks
from girder_dask.task import Task

__all__ = ["discover", "survey", "tasks_in"]


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
        found |= {each.name: each for each in tasks_in(importlib.import_module(name)).values()}
    return dict(sorted(found.items()))


def survey() -> tuple[list[str], dict[str, BaseException]]:
    """Do what :func:`discover` does, but leave out what fails, and say why.

    Returns
    -------
    tuple
        The names of the tasks, and for each entry point or module that cannot be imported what
        it has raised.
    """
    names: set[str] = set()
    failed: dict[str, BaseException] = {}
    for point_name, point in extensions().items():
        try:
            modules = modules_of(point)
        except (Exception, SystemExit) as e:  # noqa: BLE001 - a foreign module may raise anything
            failed[point_name] = e
            continue
        for name in modules:
            try:
                module = importlib.import_module(name)
            except (Exception, SystemExit) as e:  # noqa: BLE001
                failed[name] = e
            else:
                names.update(each.name for each in tasks_in(module).values())
    return sorted(names), failed


def tasks_in(module: ModuleType) -> dict[str, Task[Any, Any]]:
    """Return the tasks of a module by the names that they have there."""
    return dict(_tasks(module))


def _tasks(module: ModuleType) -> Iterator[tuple[str, Task[Any, Any]]]:
    for name, value in list(vars(module).items()):
        try:
            if isinstance(value, Task):
                yield name, value
        except Exception:  # noqa: BLE001, S112 - what stands for another object may not answer
            continue
