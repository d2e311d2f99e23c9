"""A call that has come to its end: coroutines are run, and what is only promised is refused."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from girder_dask.errors import JobFailed
from girder_dask.result import JobResult

__all__ = ["completed", "unfinished"]

#: What is computed only when somebody asks for its elements.
_LAZY = (GeneratorType, AsyncGeneratorType, map, filter)
#: Of these there are many in a list, and none has to be looked at twice.
_PLAIN = frozenset({bool, int, float, complex, str, bytes, bytearray, type(None)})
_CONTAINERS = (list, tuple, set, frozenset, dict)
#: How deep it is looked into lists, tuples, sets and dicts.
_DEPTH = 4


def completed(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, run it to its end if it is ``async``, and return its value.

    Raises
    ------
    JobFailed
        If the value is something that would still have to run.
    """
    value = function(*args, **kwargs)
    if isinstance(value, CoroutineType) and _is_async(function):
        import asyncio

        with asyncio.Runner() as runner:
            value = runner.run(value)
    found = unfinished(value)
    if found is None:
        return value
    _close(found)
    raise JobFailed(
        f"The task returned {_describe(found)}, which would still have to run, so it is not done. "
        f"{_advice(found)}"
    )


def _is_async(function: Callable[..., Any]) -> bool:
    """Say whether a function, or that of a task, is defined with ``async def``."""
    return inspect.iscoroutinefunction(inspect.unwrap(function))


def unfinished(value: Any, depth: int = _DEPTH) -> Any:
    """Return what in a value would still have to run, or None.

    >>> unfinished([1, {'a': (n for n in range(3))}])
    <generator object <genexpr> at ...>
    >>> unfinished({'a': [1, 2, 3]})
    """
    if type(value) in _PLAIN:
        return None
    if _would_run(value):
        return value
    if depth == 0 or not isinstance(value, _CONTAINERS):
        return None
    for each in _inner(value.values() if isinstance(value, dict) else value):
        found = unfinished(each, depth - 1)
        if found is not None:
            return found
    return None


def _inner(values: Any) -> Iterator[Any]:
    """Return those elements that are worth a look. To tell takes little for the others."""
    if set(map(type, values)) <= _PLAIN:
        return iter(())
    return (each for each in values if type(each) not in _PLAIN)


def _would_run(value: Any) -> bool:
    if isinstance(value, _LAZY):
        return True
    if isinstance(value, (type, JobResult)):
        return False
    kind = type(value)
    if hasattr(kind, "__await__"):
        return True
    return hasattr(kind, "__dask_graph__") and _is_collection(value)


def _is_collection(value: Any) -> bool:
    base = sys.modules.get("dask.base")
    try:
        return base is not None and bool(base.is_dask_collection(value))
    except Exception:  # noqa: BLE001 - what cannot say so is none
        return False


def _close(value: Any) -> None:
    """Spare the log a warning of a coroutine that nobody has awaited."""
    if isinstance(value, (CoroutineType, GeneratorType)):
        value.close()


def _describe(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    what = getattr(value, "__qualname__", None)
    return f"a {name} ({what})" if isinstance(what, str) else f"a {name}"


def _advice(value: Any) -> str:
    if isinstance(value, (GeneratorType, map, filter)):
        return "Return a list of its elements."
    if isinstance(value, AsyncGeneratorType):
        return "Return a list of its elements, collected with 'async for' in an 'async def'."
    if hasattr(type(value), "__dask_graph__"):
        return "Return value.compute(), or store it and return where."
    return "Await it in an 'async def', or use asyncio.run(), and return what comes of it."
