"""A module whose attributes are looked up by job."""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from typing import Any

__all__ = ["ModuleSnapshot", "add_properties", "remove_properties"]


def add_properties(
    module: types.ModuleType, properties: Mapping[str, property]
) -> type[types.ModuleType]:
    """Give a module a class with these properties, and return the class."""
    names: dict[str, Any] = dict(properties)
    # pickle and cloudpickle know modules by their very type.
    names["__reduce_ex__"] = lambda self, _: (importlib.import_module, (self.__name__,))
    made: type[types.ModuleType] = type(f"{module.__name__}_by_job", (type(module),), names)
    module.__class__ = made
    return made


def remove_properties(module: types.ModuleType, made: type[types.ModuleType] | None) -> None:
    """Take them away, unless somebody has changed the class since."""
    if made is not None and type(module) is made:
        module.__class__ = made.__base__  # type: ignore[assignment]


class ModuleSnapshot:
    """What is in a module, to be put back after ``importlib.reload``.

    Parameters
    ----------
    mark
        A name by whose value it is seen whether the module was loaded anew.
    """

    def __init__(self, module: types.ModuleType, mark: str) -> None:
        self._module = module
        self._mark = mark
        self._values = dict(vars(module))

    def put_back(self) -> None:
        """Put it back if the module was loaded anew."""
        state = vars(self._module)
        if state.get(self._mark) is not self._values[self._mark]:
            state.update(self._values)
