"""Imports in the threads of a worker, several of which may want the same package at once.

Python holds a lock for each module that it loads. A package whose ``__init__`` imports its
modules, while another thread imports one of these first, would wait for that thread, and that one
for the package. Python sees this, and has one of the two fail.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

__all__ = ["load_module", "retry_import_deadlock"]

_DEADLOCK = "_DeadlockError"  # of importlib, and a RuntimeError
_MOST, _PAUSE = 10, 0.05

_T = TypeVar("_T")


def load_module(name: str) -> ModuleType:
    """Import a module after the packages that it is in, so that threads wait in one order.

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
    """Return what a function returns that imports modules, and call it again after a deadlock.

    Parameters
    ----------
    load
        What may be done twice without harm.
    """
    for _ in range(_MOST):
        try:
            return load()
        except RuntimeError as e:
            if type(e).__name__ != _DEADLOCK:
                raise
        time.sleep(_PAUSE)  # the other thread goes on
    return load()
