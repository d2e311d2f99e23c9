"""A dictionary of bounded size that drops its oldest items."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["BoundedDict"]

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """A dictionary of the items that were set most recently.

    Parameters
    ----------
    max_items
        The most items that it holds.

    Examples
    --------
    >>> batches = BoundedDict[str, int](2)
    >>> batches['a'] = 1; batches['b'] = 1; batches['a'] = 2; batches['c'] = 1
    >>> batches
    {'a': 2, 'c': 1}
    """

    def __init__(self, max_items: int) -> None:
        super().__init__()
        self._max_items = max_items

    def __setitem__(self, key: K, value: V) -> None:
        """Set an item as the newest one."""
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > self._max_items:
            del self[next(iter(self))]
