"""Which tasks are installed, under the names that girder_worker has for the questions.

In new code :func:`girder_dask.discovery.discover` gives all tasks at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from girder_dask import packages
from girder_dask.describing import MissingDescriptionException, get_description_attribute
from girder_dask.errors import TaskNotFoundError
from girder_dask.task import Task

__all__ = [
    "GirderWorkerPluginABC",
    "get_extension_tasks",
    "get_extensions",
    "get_module_tasks",
]


class GirderWorkerPluginABC:
    """The base of the class that an entry point of the group ``girder_worker_plugins`` names.

    An entry point of the group ``girder_dask.tasks`` that names the module needs no class.
    """

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def task_imports(self) -> list[str]:
        """Return the names of the modules with tasks."""
        return []


def get_extensions(app: Any = None) -> list[str]:  # noqa: ARG001 - girder_worker has it
    """Return the names of the installed packages with tasks, as their entry points have them.

    Examples
    --------
    >>> isinstance(get_extensions(), list)
    True
    """
    return list(packages.extensions())


def get_module_tasks(module_name: str) -> dict[str, Callable[..., Any]]:
    """Return the tasks and the described functions of a module.

    girder_worker returns the described ones only.

    Returns
    -------
    dict
        They by ``module.name``.
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
    except Exception:  # noqa: BLE001 - what stands for another object may not answer
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
        What a class of the group ``girder_worker_plugins`` is made with.
    celery_only
        Leave out functions that are described but no tasks.

    Raises
    ------
    TaskNotFoundError
        If there is no such entry point.
    """
    known = packages.extensions()
    if extension not in known:
        raise TaskNotFoundError(
            f"No installed package has tasks under the name {extension!r}; there are "
            f"{', '.join(sorted(known)) or 'none'}. The name is that of an entry point of the "
            f"group {packages.ENTRY_POINT_GROUP}."
        )
    tasks: dict[str, Callable[..., Any]] = {}
    for module in packages.modules_of(known[extension], app):
        tasks |= get_module_tasks(module)
    return {name: t for name, t in tasks.items() if isinstance(t, Task) or not celery_only}
