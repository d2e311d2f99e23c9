"""Inputs that a page sends for a described task, converted to arguments of its function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from girder_dask.describing.descriptions import get_description_attribute, name_of
from girder_dask.errors import GirderDaskError

__all__ = ["MissingInputException", "call_item_task", "get_input_data", "parse_inputs"]


class MissingInputException(GirderDaskError):
    """An argument without a default was not given."""


def get_input_data(arg: Any, input_binding: Mapping[str, Any]) -> Any:
    """Return the value of one argument.

    Parameters
    ----------
    arg
        The description of the argument: an instance of one of the types.
    input_binding
        ``{'data': value}`` or ``{'mode': 'inline', 'data': value}`` for a value,
        ``{'mode': 'girder', 'id': id}`` for something in Girder.

    Raises
    ------
    ValueError, TypeError
        If the binding is of another kind, or the argument does not take the value.
    """
    mode = input_binding.get("mode", "inline")
    if mode == "inline" and "data" in input_binding:
        value = arg.deserialize(input_binding["data"])
    elif mode == "girder":
        value = input_binding.get("id")
    else:
        raise ValueError(
            f"The input {getattr(arg, 'name', '')!r} is bound as {dict(input_binding)!r}. Give "
            "{'data': value}, or {'mode': 'girder', 'id': id}."
        )
    arg.validate(value)
    return value


def parse_inputs(
    func: Any, inputs: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments for a call of a described function or task.

    Parameters
    ----------
    func
        The function or the task.
    inputs
        A binding for each argument, by its id; see :func:`get_input_data`.

    Returns
    -------
    tuple
        The positional and the keyword arguments, for ``task.delay(*args, **kwargs)``.

    Raises
    ------
    MissingInputException
        If an argument without a default is not given.
    ValueError, TypeError
        If an argument does not take its value.

    Examples
    --------
    >>> from girder_dask.describing import argument, types
    >>> @argument('n', types.Integer)
    ... def double(n):
    ...     return 2 * n
    >>> parse_inputs(double, {'n': {'data': '21'}})
    ([], {'n': 21})
    """
    given: dict[str, Any] = {}
    for arg in get_description_attribute(func).get("arguments", []):
        described = arg.describe()
        binding = inputs.get(described["id"])
        if binding is not None:
            given[arg.name] = get_input_data(arg, binding)
        elif not arg.has_default():
            raise MissingInputException(
                f"{name_of(func)} needs the input {described['id']!r}, which was not given."
            )
    return [], given


def call_item_task(
    task: Any,
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Any] | None = None,  # noqa: ARG001 - girder_worker ignores it, too
) -> Any:
    """Call a described function or task in this process with the inputs of a page.

    No job is created. For a job, pass what :func:`parse_inputs` returns to ``delay()``.

    Parameters
    ----------
    task
        The function or the task. One with ``bind=True`` gets the running job.
    inputs
        A binding for each argument, by its id; see :func:`get_input_data`.
    outputs
        Ignored, as in girder_worker.
    """
    args, kwargs = parse_inputs(task, inputs)
    return task(*args, **kwargs)
