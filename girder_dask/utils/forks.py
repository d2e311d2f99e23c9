"""Objects that are reset in forked processes.

Threads do not survive a fork, connections must not be shared with the parent, and a lock that
another thread held at that moment stays locked in the child for good.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["reset_after_fork"]

_T = TypeVar("_T")
_resets: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def reset_after_fork(instance: _T, reset: Callable[[_T], object]) -> None:
    """Reset an object in each process that is forked during its lifetime.

    Parameters
    ----------
    instance
        The object. It is not kept alive.
    reset
        Called with the object in the child, before anything else runs there. It should only drop
        what the child must not use, since most children never use the object.
    """
    _resets[instance] = reset


def _reset_all() -> None:
    for instance, reset in list(_resets.items()):
        reset(instance)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
