"""Descriptions of functions, as stored by the decorators.

A description is a dict in the attribute ``_girder_description`` of a function. The decorators of
girder_worker use the same attribute, so each package reads the descriptions of the other.
"""

from __future__ import annotations

import inspect
from typing import Any

from girder_dask.errors import GirderDaskError

__all__ = [
    "ATTRIBUTE",
    "MissingDescriptionException",
    "describe",
    "describe_function",
    "get_description_attribute",
    "name_of",
    "undecorated",
]

#: The attribute of a function with its description.
ATTRIBUTE = "_girder_description"


class MissingDescriptionException(GirderDaskError):
    """A function has no ``@argument``, so it has no description."""


def name_of(function: Any) -> str:
    """Return the name of a function or a task for messages."""
    return str(getattr(function, "__qualname__", None) or function)


def undecorated(function: Any) -> Any:
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
    for place in (func, undecorated(func)):
        description = getattr(place, ATTRIBUTE, None)
        if description is not None:
            return dict(description)
    raise MissingDescriptionException(
        f"{name_of(func)} is not described. Put @argument(name, type) above it for each of its "
        "arguments; girder_dask.describing has them."
    )


def describe(func: Any) -> dict[str, Any]:
    """Return the description of a function or a task as plain values for a page.

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
        # The pages that show descriptions expect this value.
        "mode": "girder_worker",
    }
    text = description.get("description", inspect.getdoc(undecorated(func)))
    if text:
        spec["description"] = text
    return spec


def describe_function(func: Any) -> dict[str, Any]:
    """Return the same as :func:`describe`, under girder_worker's name."""
    return describe(func)
