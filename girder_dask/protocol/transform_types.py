"""Transforms as a call carries them: what counts as one, and which a plain call may name."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["build", "detached", "is_transform", "register", "written"]

# The transforms that a plain call may name, by the names of their classes.
_kinds: dict[str, Any] = {}


def register(*kinds: type) -> None:
    """Let plain calls name these transforms. What they are made with must be harmless.

    Each has a method ``arguments()`` that returns what its constructor takes, as plain values.
    """
    _kinds.update({kind.__name__: kind for kind in kinds})


def written(value: Any) -> list[Any] | None:
    """Return a registered transform as plain values, None for any other value."""
    name = type(value).__name__
    return [name, value.arguments()] if _kinds.get(name) is type(value) else None


def build(transform: Any) -> Any:
    """Make a registered transform from nothing but arguments of its constructor.

    Raises
    ------
    ValueError
        If none of that name is registered, or if it is to have a client.
    """
    name, arguments = transform
    kind = _kinds.get(name)
    if kind is None:
        raise ValueError(f"{name!r} is no transform of girder_dask")
    if "gc" in arguments:
        raise ValueError("a client cannot be given")
    return kind(**arguments)


def is_transform(value: Any) -> bool:
    """Say whether ``value`` has ``transform()`` and ``cleanup()``.

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
    """Return a transform as it travels, and any other value as it is.

    It is without its Girder client, and ids that it holds are strings: a worker need not
    have MongoDB's package, and ``girder_client`` wants strings.
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
