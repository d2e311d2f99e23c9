"""The decorator ``@argument``, which describes an argument of a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from girder_dask.describing.descriptions import ATTRIBUTE, describe, name_of, undecorated
from girder_dask.describing.inputs import call_item_task as call_it

__all__ = ["argument"]

F = TypeVar("F", bound=Callable[..., Any])


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
        Arguments of the class, such as ``min``, ``choices``, ``help`` and ``id``.

    Raises
    ------
    TypeError
        If the name is not a string.
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
        function = undecorated(func)
        signature = inspect.signature(function)
        if name not in signature.parameters:
            raise ValueError(
                f"{name_of(func)}{signature} has no parameter {name!r} that could be described."
            )
        kind.set_parameter(signature.parameters[name], signature=signature)
        description = getattr(function, ATTRIBUTE, None)
        if description is None:
            description = {}
            setattr(function, ATTRIBUTE, description)
        # The lowest decorator is applied first.
        description.setdefault("arguments", []).insert(0, kind)
        if function is func:
            _attach(function)
        return func

    return decorate


def _attach(function: Any) -> None:
    """Give a plain function the methods that a task has."""

    def call_item_task(inputs: Any, outputs: Any = None) -> Any:
        return call_it(function, inputs, outputs)

    function.describe = lambda: describe(function)
    function.call_item_task = call_item_task
