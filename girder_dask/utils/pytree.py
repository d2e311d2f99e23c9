"""What stands in nested containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["leaves_of", "map_leaves"]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply ``function`` to whatever is no dict, list or tuple in ``value``.

    Containers in which nothing changed are returned as they are.

    >>> map_leaves(lambda v: v + 1, {'a': [1, (2,)]})
    {'a': [2, (3,)]}
    """
    if isinstance(value, dict):
        changed = {k: map_leaves(function, v) for k, v in value.items()}
        return changed if any(changed[k] is not v for k, v in value.items()) else value
    if isinstance(value, (list, tuple)):
        items = [map_leaves(function, v) for v in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        if isinstance(value, list):
            return items
        make = getattr(value, "_make", tuple)  # keeps a named tuple one
        return make(items)
    return function(value)


def leaves_of(value: Any) -> Iterator[Any]:
    """Return whatever is no dict, list or tuple in ``value``, in order.

    >>> list(leaves_of({'a': [1, (2,)], 'b': None}))
    [1, 2, None]
    """
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        yield value
        return
    for inner in value:
        yield from leaves_of(inner)
