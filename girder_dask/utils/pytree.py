"""Functions over the leaves of nested dicts, lists and tuples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["tree_leaves", "tree_map"]


def tree_map(function: Callable[[Any], Any], value: Any) -> Any:
    """Return ``value`` with a function applied to each leaf: what is not a dict, list or tuple.

    Containers without a change are returned as they are.

    >>> tree_map(lambda v: v + 1, {'a': [1, (2,)]})
    {'a': [2, (3,)]}
    """
    if isinstance(value, dict):
        changed = {k: tree_map(function, v) for k, v in value.items()}
        return changed if any(changed[k] is not v for k, v in value.items()) else value
    if isinstance(value, (list, tuple)):
        items = [tree_map(function, v) for v in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        if isinstance(value, list):
            return items
        make = getattr(value, "_make", tuple)  # keeps a named tuple one
        return make(items)
    return function(value)


def tree_leaves(value: Any) -> Iterator[Any]:
    """Yield the leaves of ``value`` in order: what is not a dict, list or tuple.

    >>> list(tree_leaves({'a': [1, (2,)], 'b': None}))
    [1, 2, None]
    """
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        yield value
        return
    for inner in value:
        yield from tree_leaves(inner)
