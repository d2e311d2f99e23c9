"""Check of the function that becomes a task: workers must find it by name."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, TypeVar

__all__ = ["checked", "found_at"]

R = TypeVar("R")


def checked(function: Callable[..., R]) -> Callable[..., R]:
    """Return the function if it can become a task.

    Raises
    ------
    TypeError
        If it cannot. The message says what to do.
    """
    problem = _problem(function)
    if problem is not None:
        raise TypeError(problem)
    return function


def _problem(function: Any) -> str | None:
    name = _name(function)
    if isinstance(function, (staticmethod, classmethod)):
        above = type(function).__name__
        return f"@task is above @{above} of {name}. Put @{above} first, and @task below it."
    if not callable(function):
        return f"@task got {name}, which is not callable. Put it directly above a function."
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return (
            f"{name} is a generator function: a call runs none of its code, so a job would do "
            "nothing. Collect the values in a list, and return it."
        )
    kind = _kind(function)
    if kind is None:
        return None
    own = name.rpartition(".")[2]
    own = own if own.isidentifier() else "work"
    return (
        f"{name} is {kind}, which workers cannot find by name. Write a function around it:\n"
        f"    @task\n    def my_{own}(...):\n        return {own}(...)"
    )


def _kind(function: Any) -> str | None:
    """Return the kind of a callable that cannot be found by name, None for a function."""
    if inspect.isclass(function):
        return "a class"
    if isinstance(function, MethodType):
        return "a bound method"
    if isinstance(function, functools.partial):
        return "a functools.partial"
    module, qualname = (getattr(function, n, None) for n in ("__module__", "__qualname__"))
    if module is None and isinstance(function, FunctionType):
        return None  # its code is in no module, so it travels by value, like that of a notebook
    if not isinstance(module, str) or not isinstance(qualname, str):
        return f"an object of {type(function).__qualname__}"
    if not isinstance(function, FunctionType) and not _has_signature(function):
        return "a function without a signature"
    if _is_imported(module) and found_at(module, qualname) is function:
        # The function that is being decorated is not in its module yet.
        return f"the plain function {qualname} of the module {module}"
    return None


def _has_signature(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        return False
    return True


def _is_imported(module: str) -> bool:
    """Return True if a module is imported, and its code has run to the end."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def found_at(module: str, qualname: str) -> Any:
    """Return the object of an imported module with a qualified name, or None."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _name(function: Any) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    qualname = getattr(inner, "__qualname__", None)
    if not isinstance(qualname, str):
        try:
            return f"{function!r:.100}"
        except Exception:  # noqa: BLE001 - a foreign __repr__ may raise anything
            return f"an object of {type(function).__qualname__}"
    module = getattr(inner, "__module__", None)
    return f"{module}.{qualname}" if isinstance(module, str) else qualname
