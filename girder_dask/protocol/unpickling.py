"""Unpickling of calls, values and exceptions that an earlier layout of the package pickled.

A pickle names classes and functions by module. Jobs wait in Girder's database across upgrades,
so names that have moved since are looked up where they are now.
"""

from __future__ import annotations

import importlib
import io
import pickle
from types import ModuleType
from typing import Any

import msgspec

__all__ = ["MOVED", "RENAMED", "loads"]

#: Where the names of former modules are now: the first of these modules that has the name.
MOVED: dict[str, tuple[str, ...]] = {
    "calls": ("tasks.options",),
    "composition": ("tasks.composition",),
    "connection": ("client.connection",),
    "context": ("tasks.running_job",),
    "discovery": ("entrypoint",),
    "files.base": ("files.transform_base",),
    "inputs": ("files.inputs",),
    "outputs": ("files.outputs",),
    "payload": ("protocol.payload", "protocol.display"),
    "porting": ("tasks.girder_worker_compat",),
    "remote_errors": ("protocol.exceptions",),
    "result": ("client.result",),
    "task": ("tasks.task", "tasks.decorator"),
    "tasks.context": ("tasks.running_job",),
    "transform": ("files.transform_base", "protocol.transform_types"),
    "waiting": ("client.waiting",),
    "without_job": ("tasks.untracked",),
}

#: New names of what was also renamed, by former module and name.
RENAMED = {("without_job", "WithoutJob"): "UntrackedResult"}

_PACKAGE = "girder_dask."


def loads(data: bytes) -> Any:
    """Unpickle a value like :func:`pickle.loads`, with former names resolved.

    Examples
    --------
    >>> loads(b'cgirder_dask.result\\nJobResult\\n.')
    <class 'girder_dask.JobResult'>
    """
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        former = module.removeprefix(_PACKAGE)
        if module.startswith(_PACKAGE) and former in MOVED:
            found = self._find_moved(former, RENAMED.get((former, name), name))
            is_struct = isinstance(found, type) and issubclass(found, msgspec.Struct)
            return _blank_maker(found) if is_struct else found
        if name == "subimport" and module.startswith("cloudpickle"):
            return _import_module
        return super().find_class(module, name)

    def _find_moved(self, former: str, name: str) -> Any:
        *others, last = MOVED[former]
        for module in others:
            try:
                return super().find_class(_PACKAGE + module, name)
            except AttributeError:
                continue
        return super().find_class(_PACKAGE + last, name)


def _blank_maker(struct: type[msgspec.Struct]) -> type:
    """Return a class whose instances are blank structs, which ``__setstate__`` then fills.

    Former releases pickled dataclasses. Unpickling one calls ``__new__``, which structs lack.
    """
    return type(struct.__name__, (), {"__new__": lambda _: struct()})


def _import_module(name: str) -> ModuleType:
    """Import a module that a pickled function refers to; cloudpickle writes it as a call."""
    former = name.removeprefix(_PACKAGE)
    if name.startswith(_PACKAGE) and former in MOVED:
        name = _PACKAGE + MOVED[former][0]
    return importlib.import_module(name)
