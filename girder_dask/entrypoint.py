"""Discovery of installed tasks: :func:`discover`, and girder_worker's functions for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from girder_dask.describing import MissingDescriptionException, get_description_attribute
from girder_dask.errors import TaskNotFoundError
from girder_dask.tasks import discovery
from girder_dask.tasks.task import Task

__all__ = [
    "GirderWorkerPluginABC",
    "discover",
    "get_extension_tasks",
    "get_extensions",
    "get_module_tasks",
    "survey",
    "tasks_in",
]


def discover() -> dict[str, Task[Any, Any]]:
    """Import every module in the entry point group ``girder_dask.tasks``.

    Returns
    -------
    dict
        The tasks by name, sorted.

    Raises
    ------
    ImportError
        If one of the modules cannot be imported.
    """
    found: dict[str, Task[Any, Any]] = {}
    for name in discovery.modules_of_tasks():
        found |= {each.name: each for each in tasks_in(importlib.import_module(name)).values()}
    return dict(sorted(found.items()))


def survey() -> tuple[list[str], dict[str, BaseException]]:
    """Import all tasks like :func:`discover`, but collect the errors.

    Returns
    -------
    tuple
        The names of the tasks, and the exceptions by entry point or module that failed.
    """
    names: set[str] = set()
    failed: dict[str, BaseException] = {}
    for point_name, point in discovery.extensions().items():
        try:
            modules = discovery.modules_of(point)
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
    """Return the tasks of a module by their names in it."""
    return dict(_tasks(module))


def _tasks(module: ModuleType) -> Iterator[tuple[str, Task[Any, Any]]]:
    for name, value in list(vars(module).items()):
        try:
            if isinstance(value, Task):
                yield name, value
        except Exception:  # noqa: BLE001, S112 - of a proxy object
            continue


class GirderWorkerPluginABC:
    """Base of the classes in the entry point group ``girder_worker_plugins``.

    An entry point of the group ``girder_dask.tasks`` names a module, and needs no class.
    """

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def task_imports(self) -> list[str]:
        """Return the names of the modules with tasks."""
        return []


def get_extensions(app: Any = None) -> list[str]:  # noqa: ARG001 - girder_worker has it
    """Return the names of the entry points of installed packages with tasks.

    Examples
    --------
    >>> isinstance(get_extensions(), list)
    True
    """
    return list(discovery.extensions())


def get_module_tasks(module_name: str) -> dict[str, Callable[..., Any]]:
    """Return the tasks and the described functions of a module.

    girder_worker returns only the described ones.

    Returns
    -------
    dict
        The functions by ``module.name``.
    """
    module = importlib.import_module(module_name)
    return {
        f"{module_name}.{name}": value
        for name, value in vars(module).items()
        if _is_task_or_described(value)
    }


def _is_task_or_described(value: Any) -> bool:
    try:
        if not callable(value):
            return False
        if not isinstance(value, Task):
            get_description_attribute(value)
    except MissingDescriptionException:
        return False
    except Exception:  # noqa: BLE001 - of a proxy object
        return False
    return True


def get_extension_tasks(
    extension: str, app: Any = None, celery_only: bool = False
) -> dict[str, Callable[..., Any]]:
    """Return the tasks and the described functions of an installed package.

    Parameters
    ----------
    extension
        The name of its entry point.
    app
        The argument for a class of the group ``girder_worker_plugins``.
    celery_only
        Leave out described functions that are not tasks.

    Raises
    ------
    TaskNotFoundError
        If there is no such entry point.
    """
    known = discovery.extensions()
    if extension not in known:
        raise TaskNotFoundError(
            f"No installed package has an entry point {extension!r} in the group "
            f"{discovery.ENTRY_POINT_GROUP}. Those with tasks are: "
            f"{', '.join(sorted(known)) or 'none'}."
        )
    tasks: dict[str, Callable[..., Any]] = {}
    for module in discovery.modules_of(known[extension], app):
        tasks |= get_module_tasks(module)
    return {name: t for name, t in tasks.items() if isinstance(t, Task) or not celery_only}
