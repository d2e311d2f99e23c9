"""Replacements of attributes of foreign classes and modules, which can be undone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["MonkeyPatches"]


class MonkeyPatches:
    """Replaced attributes.

    Examples
    --------
    >>> class Purse:
    ...     def count(self):
    ...         return 7
    >>> patches = MonkeyPatches()
    >>> patches.apply(Purse, 'count', lambda original: lambda self: original(self) + 1)
    >>> Purse().count()
    8
    >>> patches.undo()
    >>> Purse().count()
    7
    """

    def __init__(self) -> None:
        self._applied: list[tuple[Any, str, Any, Any]] = []

    def apply(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace ``owner.name`` by what ``make`` returns for it; None if the owner has none."""
        had = name in vars(owner)
        original = vars(owner)[name] if had else None
        replacement = make(original)
        if callable(original):
            replacement = functools.wraps(original)(replacement)
        setattr(owner, name, replacement)
        self._applied.append((owner, name, original if had else self, replacement))

    def undo(self) -> None:
        """Put back each original whose replacement has not been replaced since."""
        while self._applied:
            owner, name, original, replacement = self._applied.pop()
            if vars(owner).get(name) is replacement:
                if original is self:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)
