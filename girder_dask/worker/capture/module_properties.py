"""Properties of modules, which give an attribute a value for each job."""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from typing import Any

__all__ = ["ModuleSnapshot", "add_properties", "remove_properties"]


def add_properties(
    module: types.ModuleType, properties: Mapping[str, property]
) -> type[types.ModuleType]:
    """Give a module a class with properties, and return the class."""
    names: dict[str, Any] = dict(properties)
    # pickle and cloudpickle recognize modules by their exact type.
    names["__reduce_ex__"] = lambda self, _: (importlib.import_module, (self.__name__,))
    made: type[types.ModuleType] = type(f"{module.__name__}_by_job", (type(module),), names)
    module.__class__ = made
    return made


def remove_properties(module: types.ModuleType, made: type[types.ModuleType] | None) -> None:
    """Remove the properties, unless the class has been changed since."""
    if made is not None and type(module) is made:
        module.__class__ = made.__base__  # type: ignore[assignment]


class ModuleSnapshot:
    """The attributes of a module, to be restored after ``importlib.reload``.

    Parameters
    ----------
    mark
        A name whose value changes when the module is reloaded.
    """

    def __init__(self, module: types.ModuleType, mark: str) -> None:
        self._module = module
        self._mark = mark
        self._values = dict(vars(module))

    def restore(self) -> None:
        """Restore the attributes if the module was reloaded."""
        state = vars(self._module)
        if state.get(self._mark) is not self._values[self._mark]:
            state.update(self._values)
