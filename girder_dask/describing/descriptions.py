"""``@argument``, and the description that it makes.

A description is a dict in the attribute ``_girder_description`` of the function, which
girder_worker's decorators set as well: what is described with the one is understood by
the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from girder_dask.errors import GirderDaskError

__all__ = [
    "MissingDescriptionException",
    "argument",
    "describe",
    "describe_function",
    "get_description_attribute",
]

_ATTRIBUTE = "_girder_description"

F = TypeVar("F", bound=Callable[..., Any])


class MissingDescriptionException(GirderDaskError):
    """A function has no ``@argument``, so there is nothing to describe."""


def name_of(function: Any) -> str:
    """Return the name by which messages call a function or a task."""
    return str(getattr(function, "__qualname__", None) or function)


def _undecorated(function: Any) -> Any:
    """Return the function of a task: ``function`` of ours, ``run`` of Celery's."""
    inner = getattr(function, "function", None) or getattr(function, "run", None)
    return inner if callable(inner) else function


def get_description_attribute(func: Any) -> dict[str, Any]:
    """Return the description of a function or a task.

    Raises
    ------
    MissingDescriptionException
        If it has none.
    """
    for place in (func, _undecorated(func)):
        description = getattr(place, _ATTRIBUTE, None)
        if description is not None:
            return dict(description)
    raise MissingDescriptionException(
        f"{name_of(func)} is not described. Put @argument(name, type) above it for each of its "
        "arguments; girder_dask.describing has them."
    )


def argument(name: str, data_type: Any, *args: Any, **kwargs: Any) -> Callable[[F], F]:
    """Describe an argument of a function or of a task.

    Parameters
    ----------
    name
        The name of the parameter.
    data_type
        A class of :mod:`girder_dask.describing.types` (or of ``girder_worker.utils.types``),
        or an instance of one.
    *args, **kwargs
        What the class is made with, such as ``min``, ``choices``, ``help`` and ``id``.

    Raises
    ------
    TypeError
        If the name is no string.
    ValueError
        If the function has no such parameter.

    Examples
    --------
    >>> from girder_dask.describing import types
    >>> @argument('unit', types.StringChoice, choices=('mm', 'px'))
    ... def measure(unit='px'):
    ...     return unit
    >>> measure.describe()['inputs'][0]['default']
    {'data': 'px'}
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of an argument must be a string, not {name!r}.")
    kind = data_type(name, *args, **kwargs) if callable(data_type) else data_type

    def decorate(func: F) -> F:
        function = _undecorated(func)
        signature = inspect.signature(function)
        if name not in signature.parameters:
            raise ValueError(
                f"{name_of(func)}{signature} has no parameter {name!r} that could be described."
            )
        kind.set_parameter(signature.parameters[name], signature=signature)
        description = getattr(function, _ATTRIBUTE, None)
        if description is None:
            description = {}
            setattr(function, _ATTRIBUTE, description)
        # Decorators are applied from below: the first in the text comes last.
        description.setdefault("arguments", []).insert(0, kind)
        if function is func:
            _attach(function)
        return func

    return decorate


def _attach(function: Any) -> None:
    """Give a plain function the methods that a task has."""

    def call_item_task(inputs: Any, outputs: Any = None) -> Any:
        from girder_dask.describing import inputs as of_inputs

        return of_inputs.call_item_task(function, inputs, outputs)

    function.describe = lambda: describe(function)
    function.call_item_task = call_item_task


def describe(func: Any) -> dict[str, Any]:
    """Return what a function or a task takes, as plain values that a page can show.

    Returns
    -------
    dict
        ``name``, ``inputs`` (a dict for each argument), ``mode``, and ``description``, which
        is the docstring.

    Raises
    ------
    MissingDescriptionException
        If it has no description.
    """
    description = get_description_attribute(func)
    spec: dict[str, Any] = {
        "name": description.get("name", func.__name__),
        "inputs": [kind.describe() for kind in description.get("arguments", [])],
        # Pages that show such descriptions know this one word.
        "mode": "girder_worker",
    }
    text = description.get("description", inspect.getdoc(_undecorated(func)))
    if text:
        spec["description"] = text
    return spec


def describe_function(func: Any) -> dict[str, Any]:
    """Do what :func:`describe` does; the name is girder_worker's."""
    return describe(func)
