"""The public names with their signatures, as text.

``python tests/support/public_api.py > tests/data/public_api.txt`` writes what the test compares.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["MODULES", "public_api"]

MODULES = (
    "girder_dask",
    "girder_dask.config",
    "girder_dask.credential",
    "girder_dask.describing",
    "girder_dask.describing.types",
    "girder_dask.docker",
    "girder_dask.entrypoint",
    "girder_dask.errors",
    "girder_dask.jobs",
    "girder_dask.standalone",
    "girder_dask.testing",
    "girder_dask.testing.stack",
    "girder_dask.transforms",
)


def public_api() -> list[str]:
    """Return a line for each public name, and for each public member of a class."""
    return [
        line
        for module in map(importlib.import_module, MODULES)
        for name in sorted(module.__all__)
        for line in _lines(f"{module.__name__}.{name}", getattr(module, name))
    ]


def _lines(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        # How an enumeration is called differs between versions of Python.
        yield f"class {name}{'' if issubclass(value, enum.Enum) else _signature(value)}"
        for member in sorted(vars_of(value)):
            yield f"    {_member(value, member)}"
    elif isinstance(value, FunctionType):
        yield f"def {name}{_signature(value)}"
    elif isinstance(value, ModuleType):
        yield f"module {name}"
    elif isinstance(value, (str, int)) and not name.endswith("__version__"):
        yield f"{name} = {value!r}"
    else:
        yield f"{name}: {type(value).__name__}"


def vars_of(kind: type) -> set[str]:
    """Return the public attributes of a class, those of its bases in this package too."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("girder_dask")]
    return {name for base in ours for name in vars(base) if not name.startswith("_")}


def _member(kind: type, name: str) -> str:
    value = inspect.getattr_static(kind, name)
    if isinstance(value, enum.Enum):
        return f"{name} = {value.value!r}"
    if isinstance(value, (classmethod, staticmethod)):
        return f"{type(value).__name__} {name}{_signature(value.__func__)}"
    if isinstance(value, FunctionType):
        return f"def {name}{_signature(value)}"
    return f"{'property ' if isinstance(value, property) else ''}{name}"


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except ValueError:  # of an exception without a constructor of its own
        return ""
    # The text of a message is not part of a signature.
    return re.sub(r"'[^'=]* [^'=]*\.'", "…", text).replace("'", "")


if __name__ == "__main__":
    print("\n".join(public_api()))
