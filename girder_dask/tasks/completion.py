"""Completion of calls: coroutines are awaited, and unfinished results are refused."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from girder_dask.client.result import JobResult
from girder_dask.errors import JobFailed
from girder_dask.tasks.running_job import current_job

__all__ = ["completed", "unfinished"]

#: Types that compute their elements on demand.
_LAZY = (GeneratorType, AsyncGeneratorType, map, filter, zip, enumerate)
#: Modules whose types all compute their elements on demand.
_ITERATOR_MODULES = frozenset({"itertools"})
#: Types of work that continues elsewhere: module, name, the test whether it continues, and advice.
#: The value of a future would be lost, so a finished one counts as well.
_WORK_TYPES: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("concurrent.futures", "Future", lambda _: True, "Return what its result() returns."),
    ("multiprocessing.pool", "AsyncResult", lambda _: True, "Return what its get() returns."),
    ("multiprocessing.pool", "IMapIterator", lambda _: True, "Return a list of its elements."),
    (
        "threading",
        "Thread",
        lambda each: bool(each.is_alive()),
        "Call its join(), and return a value.",
    ),
    (
        "subprocess",
        "Popen",
        lambda each: each.poll() is None,
        "Call its wait(), and return a value.",
    ),
    (
        "multiprocessing.process",
        "BaseProcess",
        lambda each: bool(each.is_alive()),
        "Call its join(), and return a value.",
    ),
)
#: Types of elements that need no check, since lists may have many of them.
_PLAIN = frozenset({bool, int, float, complex, str, bytes, bytearray, type(None)})
_CONTAINERS = (list, tuple, set, frozenset, dict)
#: The depth to which lists, tuples, sets and dicts are searched.
_MAX_DEPTH = 4


def completed(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, await it if it is ``async``, and return its value.

    Raises
    ------
    JobFailed
        If the value contains unfinished work.
    """
    value = function(*args, **kwargs)
    if isinstance(value, CoroutineType) and _is_async(function):
        import asyncio

        with asyncio.Runner() as runner:
            value = runner.run(value)
            _log_canceled(asyncio.all_tasks(runner.get_loop()))
    found = unfinished(value)
    if found is None:
        return value
    _close(found)
    raise JobFailed(
        f"The task returned {_describe(found)}, whose work is not finished. {_advice(found)}"
    )


def _log_canceled(tasks: Collection[Any]) -> None:
    """Write to the job's log which asyncio tasks are canceled because the function returned."""
    if not tasks:
        return
    names = ", ".join(sorted({_name_of_task(each) for each in tasks}))
    current_job().job_manager.write(
        f"The task returned before its asyncio tasks were done, so they are canceled "
        f"({len(tasks)}): {names:.500}. Await them before returning, for example with "
        "asyncio.gather().\n"
    )


def _name_of_task(task: Any) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", None) or task.get_name())


def _is_async(function: Callable[..., Any]) -> bool:
    """Return True if a function, or that of a task, is defined with ``async def``."""
    return inspect.iscoroutinefunction(inspect.unwrap(function))


def unfinished(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Return the first object in a value whose work is not finished, or None.

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
    for each in _unchecked(value.values() if isinstance(value, dict) else value):
        found = unfinished(each, depth - 1)
        if found is not None:
            return found
    return None


def _unchecked(values: Any) -> Iterator[Any]:
    """Return the elements that have to be checked. For plain elements this is fast."""
    if set(map(type, values)) <= _PLAIN:
        return iter(())
    return (each for each in values if type(each) not in _PLAIN)


def _would_run(value: Any) -> bool:
    if isinstance(value, _LAZY):
        return True
    if isinstance(value, (type, JobResult)):
        return False
    kind = type(value)
    if hasattr(kind, "__await__") or kind.__module__ in _ITERATOR_MODULES:
        return True
    if _advice_on_work_type(value) is not None:
        return True
    return hasattr(kind, "__dask_graph__") and _is_collection(value)


def _advice_on_work_type(value: Any) -> str | None:
    """Return how to wait for work that continues elsewhere, None for any other value."""
    kind: Any = type(value)
    continues, advice = _work_type(kind)
    return advice if continues is not None and continues(value) else None


@functools.lru_cache(1024)
def _work_type(kind: type) -> tuple[Callable[[Any], bool] | None, str]:
    """Return the test whether an object of this type continues, and how to wait for it."""
    for module, name, continues, advice in _WORK_TYPES:
        # If the module is not imported, the object is of another type.
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and issubclass(kind, known):
            return continues, advice
    return None, ""


def _is_collection(value: Any) -> bool:
    base = sys.modules.get("dask.base")
    try:
        return base is not None and bool(base.is_dask_collection(value))
    except Exception:  # noqa: BLE001 - of a foreign __dask_graph__
        return False


def _close(value: Any) -> None:
    """Close a coroutine, so that Python does not warn that it was never awaited."""
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
    advice = _advice_on_work_type(value)
    if advice is not None:
        return advice
    if isinstance(value, (GeneratorType, map, filter, zip, enumerate)) or (
        type(value).__module__ in _ITERATOR_MODULES
    ):
        return "Return a list of its elements."
    if isinstance(value, AsyncGeneratorType):
        return "Return a list of its elements, collected with 'async for' in an 'async def'."
    if hasattr(type(value), "__dask_graph__"):
        return "Return value.compute(), or store it and return where."
    return "Await it in an 'async def', or use asyncio.run(), and return its result."
