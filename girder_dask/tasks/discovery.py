"""Installed packages with tasks, found by their entry points."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint

__all__ = [
    "ENTRY_POINT_GROUP",
    "WORKER_ENTRY_POINT_GROUP",
    "distributions_by_package",
    "extensions",
    "is_among",
    "is_of_tasks",
    "modules_beside",
    "modules_of",
    "modules_of_tasks",
    "package_of",
]

logger = logging.getLogger(__name__)

#: The entry point group in which distributions name their modules of tasks.
ENTRY_POINT_GROUP = "girder_dask.tasks"

#: girder_worker's group, in which distributions name a class whose ``task_imports()`` returns the
#: names of the modules.
WORKER_ENTRY_POINT_GROUP = "girder_worker_plugins"


def extensions() -> dict[str, EntryPoint]:
    """Return the entry points of packages with tasks by name, without importing them.

    One in girder_worker's group counts if its distribution requires ``girder_dask``: the modules
    of others may need girder_worker.
    """
    old = importlib.metadata.entry_points(group=WORKER_ENTRY_POINT_GROUP)
    found = {point.name: point for point in old if _is_ported(point)}
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        found[point.name] = point
    return found


def _is_ported(point: EntryPoint) -> bool:
    requirements = (point.dist.requires if point.dist is not None else None) or []
    return any(re.match(r"girder[-_.]dask\b", text, re.IGNORECASE) for text in requirements)


def modules_of(point: EntryPoint, app: object = None) -> list[str]:
    """Return the names of an entry point's modules of tasks.

    Parameters
    ----------
    point
        An entry point of :func:`extensions`. For one in girder_worker's group, its class is
        imported and instantiated.
    app
        The argument of that class.
    """
    if point.group == ENTRY_POINT_GROUP:
        return [point.value.partition(":")[0]]
    return [str(name) for name in point.load()(app).task_imports()]


def modules_of_tasks() -> list[str]:
    """Return the names of the modules of all packages with tasks, without importing them."""
    modules = [name for point in extensions().values() for name in modules_of(point)]
    return list(dict.fromkeys(modules))


def is_of_tasks(module: str) -> bool:
    """Return True if a module is a package's module of tasks, or below one."""
    return is_among(module, modules_of_tasks())


def is_among(module: str, modules: Iterable[str]) -> bool:
    """Return True if a module is one of these modules, or below one.

    >>> is_among("coins.tasks.sizes", ["coins.tasks"]), is_among("coins.tasks2", ["coins.tasks"])
    (True, False)
    """
    return any(module == name or module.startswith(f"{name}.") for name in modules)


@functools.lru_cache(maxsize=1024)
def modules_beside(module: str) -> frozenset[str]:
    """Return the modules of tasks of a module's distribution.

    That is the distribution whose entry points name the module or one above it, otherwise the only
    one with its top-level package. Empty for a module of no distribution with tasks.
    """
    named: dict[str, set[str]] = {}
    for point in extensions().values():
        try:
            modules = modules_of(point)
        except Exception:
            logger.exception("The modules of the package %s cannot be listed", point.name)
            continue
        named.setdefault(point.dist.name if point.dist else "", set()).update(modules)
    found = frozenset().union(*(its for its in named.values() if is_among(module, its)))
    if found:
        return found
    top = distributions_by_package().get(module.partition(".")[0], [])
    return frozenset(named.get(top[0], ())) if len(set(top)) == 1 else frozenset()


@functools.cache
def distributions_by_package() -> Mapping[str, list[str]]:
    """Return the names of distributions by their top-level packages. The first call is slow."""
    return importlib.metadata.packages_distributions()


@functools.lru_cache(maxsize=1024)
def package_of(module: str) -> str | None:
    """Return the distribution of a module of tasks, as ``name version``, or None."""
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.value.partition(":")[0] == module and entry_point.dist is not None:
            return f"{entry_point.dist.name} {entry_point.dist.version}"
    top = module.partition(".")[0]
    names = distributions_by_package().get(top)
    return f"{names[0]} {importlib.metadata.version(names[0])}" if names else None
