"""Calls of functions of a test inside a Girder process.

The function is pickled by value, so Girder does not need the module of the test. The test uses
:func:`pack` and :func:`unpack`, Girder uses :func:`run`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import cloudpickle

from girder_dask.errors import GirderDaskError

__all__ = ["RemoteError", "pack", "run", "unpack"]


class RemoteError(GirderDaskError):
    """The traceback of a function that raised inside Girder, as the cause of its exception."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def pack(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Pickle a call, with the function's module unless it is of an installed package."""
    module = sys.modules.get(func.__module__)
    if module is None or not _belongs_to_tests(module):
        return bytes(cloudpickle.dumps((func, args, kwargs)))
    cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps((func, args, kwargs)))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def run(call: bytes) -> bytes:
    """Run a packed call, and pickle its return value or its exception."""
    try:
        func, args, kwargs = pickle.loads(call)
        outcome: tuple[Any, ...] = (func(*args, **kwargs), None, "")
        return bytes(cloudpickle.dumps(outcome))
    except BaseException as e:  # noqa: BLE001 - the test gets any exception
        text = "".join(traceback.format_exception(e))
        try:
            return bytes(cloudpickle.dumps((None, e, text)))
        except Exception:  # noqa: BLE001 - pickling runs foreign code
            return bytes(cloudpickle.dumps((None, GirderDaskError(repr(e)), text)))


def unpack(outcome: bytes) -> Any:
    """Return the value of a call from the output of :func:`run`, or raise its exception."""
    value, error, text = pickle.loads(outcome)
    if error is not None:
        raise error from RemoteError(text)
    return value


def _belongs_to_tests(module: ModuleType) -> bool:
    top = module.__name__.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in _installed_packages()


@functools.cache
def _installed_packages() -> frozenset[str]:
    return frozenset(importlib.metadata.packages_distributions())
