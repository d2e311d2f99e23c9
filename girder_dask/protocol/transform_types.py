"""Transforms in a call: what counts as one, and which ones a plain call may name."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["build", "detached", "is_transform", "register", "written"]

# The transforms that a plain call may name, by class name.
_kinds: dict[str, Any] = {}


def register(*kinds: type) -> None:
    """Let plain calls name these transforms, whose constructor arguments must be harmless.

    Each has a method ``arguments()`` that returns its constructor arguments as plain values.
    """
    _kinds.update({kind.__name__: kind for kind in kinds})


def written(value: Any) -> list[Any] | None:
    """Return a registered transform as plain values, or None for any other value."""
    name = type(value).__name__
    return [name, value.arguments()] if _kinds.get(name) is type(value) else None


def build(transform: Any) -> Any:
    """Build a registered transform from its constructor arguments.

    Raises
    ------
    ValueError
        If no transform of that name is registered, or if a client is among the arguments.
    """
    name, arguments = transform
    kind = _kinds.get(name)
    if kind is None:
        raise ValueError(f"{name!r} is not a transform of girder_dask")
    if "gc" in arguments:
        raise ValueError("a client cannot be given")
    return kind(**arguments)


def is_transform(value: Any) -> bool:
    """Return True if ``value`` has ``transform()`` and ``cleanup()``.

    >>> from girder_dask.transforms import GirderFileId
    >>> is_transform(GirderFileId('5f3c')), is_transform('5f3c'), is_transform(GirderFileId)
    (True, False, False)
    """
    return (
        not isinstance(value, type)
        and callable(getattr(value, "transform", None))
        and callable(getattr(value, "cleanup", None))
    )


def detached(value: Any) -> Any:
    """Return a transform without its Girder client and with ids as strings; other values unchanged.

    A worker need not have MongoDB's package, and ``girder_client`` expects strings.
    """
    if not is_transform(value):
        return value
    changes: dict[str, Any] = {"gc": None} if getattr(value, "gc", None) is not None else {}
    for name, held in getattr(value, "__dict__", {}).items():
        if type(held).__name__ == "ObjectId":
            changes[name] = str(held)
    if changes:
        value = copy.copy(value)
        vars(value).update(changes)
    return value
