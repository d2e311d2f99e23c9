"""A dictionary that forgets what is oldest."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["BoundedDict"]

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """A dictionary of the items that were set last.

    Parameters
    ----------
    most
        How many it holds.

    Examples
    --------
    >>> batches = BoundedDict[str, int](2)
    >>> batches['a'] = 1; batches['b'] = 1; batches['a'] = 2; batches['c'] = 1
    >>> batches
    {'a': 2, 'c': 1}
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        """Set an item, as the newest one."""
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > self._most:
            del self[next(iter(self))]
