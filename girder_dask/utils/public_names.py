"""Names that a public module exports, pinned to it.

Pickles refer to classes and functions by module. Queued jobs outlive an upgrade, so what users can
pickle names the public module, which is fixed, and not the one that defines it.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from types import FunctionType
from typing import Any

__all__ = ["defining_module", "pin"]

_defining_modules: dict[Any, str] = {}


def pin(namespace: MutableMapping[str, Any], *, home: Collection[str] = ()) -> None:
    """Set ``__module__`` of the classes and functions in ``__all__`` to this module.

    Parameters
    ----------
    namespace
        The ``globals()`` of the public module, once all names are there.
    home
        Other public modules, to which their classes and functions stay pinned.

    Examples
    --------
    >>> class Coin: ...
    >>> pin({'__name__': 'coins', '__all__': ['Coin'], 'Coin': Coin})
    >>> Coin.__module__
    'coins'
    """
    for name in namespace["__all__"]:
        value = namespace[name]
        if isinstance(value, (type, FunctionType)) and value.__module__ not in home:
            _defining_modules.setdefault(value, value.__module__)
            value.__module__ = namespace["__name__"]


def defining_module(value: type | FunctionType) -> str:
    """Return the module whose source text defines a class or function, pinned or not."""
    return _defining_modules.get(value, value.__module__)
