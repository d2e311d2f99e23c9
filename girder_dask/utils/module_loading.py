"""Imports in many threads, without deadlocks.

Python holds a lock for each module that it loads. If one thread imports a package whose
``__init__`` imports its modules, and another thread imports one of these modules first, each waits
for the other. Python detects this, and one of the two imports fails.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

__all__ = ["load_module", "retry_import_deadlock"]

_DEADLOCK_ERROR = "_DeadlockError"  # a private RuntimeError of importlib
_MAX_TRIES, _RETRY_DELAY_S = 10, 0.05

_T = TypeVar("_T")


def load_module(name: str) -> ModuleType:
    """Import a module after its parent packages, so that all threads wait in the same order.

    Raises
    ------
    ImportError
        If it cannot be imported.

    Examples
    --------
    >>> load_module('xml.dom.minidom').__name__
    'xml.dom.minidom'
    """
    package = name.rpartition(".")[0]
    if package:
        load_module(package)
    return retry_import_deadlock(lambda: importlib.import_module(name))


def retry_import_deadlock(load: Callable[[], _T]) -> _T:
    """Call a function that imports modules, and again after a deadlock. Return its value.

    Parameters
    ----------
    load
        A function that may be called twice without harm.
    """
    for _ in range(_MAX_TRIES):
        try:
            return load()
        except RuntimeError as e:
            if type(e).__name__ != _DEADLOCK_ERROR:
                raise
        time.sleep(_RETRY_DELAY_S)  # so that the other thread can continue
    return load()
