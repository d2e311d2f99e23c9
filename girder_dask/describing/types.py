"""The types of described arguments.

Each converts the input of a page into the value for the function (``deserialize``), refuses values
that it does not take (``validate``), and describes itself (``describe``). The names and the
descriptions are those of ``girder_worker.utils.types``.
"""

# ruff: noqa: N815 - paramType and elementClass are girder_worker's, for those who derive

from __future__ import annotations

import inspect
import numbers
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

__all__ = [
    "Base",
    "Boolean",
    "Choice",
    "Color",
    "Girder",
    "GirderFolder",
    "GirderItem",
    "Integer",
    "Number",
    "NumberChoice",
    "NumberMultichoice",
    "NumberVector",
    "Range",
    "String",
    "StringChoice",
    "StringMultichoice",
    "StringVector",
    "Vector",
]


# How far a value may be from a step, as a share of the step. Girder's pages allow as much.
_STEP_TOLERANCE = 1e-6


class Base:
    """The base class of all types. Derive your own from it.

    Parameters
    ----------
    name
        The name of the parameter.
    id
        The name under which the page sends the value, by default ``name``.
    help
        The help text on the page.
    """

    #: What each description of this type contains.
    description: ClassVar[dict[str, Any]] = {}

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.id = kwargs.get("id", name)
        self.name = name
        self.help = kwargs.get("help")
        self.parameter: inspect.Parameter | None = None

    def set_parameter(self, parameter: inspect.Parameter, **_kwargs: Any) -> None:
        """Set the parameter of the function that is described. The decorator calls it."""
        self.parameter = parameter

    def has_default(self) -> bool:
        """Return True if the function has a default for the argument."""
        return self.parameter is not None and self.parameter.default is not inspect.Parameter.empty

    def describe(self) -> dict[str, Any]:
        """Return the description for a page."""
        described = deepcopy(self.description)
        described.setdefault("id", self.id)
        described.setdefault("name", self.name)
        if self.parameter is not None and self.has_default():
            described.setdefault("default", {"data": self._default(self.parameter.default)})
        if self.help is not None:
            described["description"] = self.help
        return described

    def _default(self, value: Any) -> Any:
        # A default of None means "nothing" and is not a value of the type.
        return None if value is None else self.serialize(value)

    def serialize(self, value: Any) -> Any:
        """Return a value for a page."""
        return value

    def deserialize(self, value: Any) -> Any:
        """Return the value for the function from the input of a page."""
        return value

    def validate(self, value: Any) -> None:
        """Raise ValueError or TypeError for a value that is not of this type."""


class Boolean(Base):
    """True or false.

    >>> Boolean('debug').deserialize('false')
    False
    """

    description: ClassVar[dict[str, Any]] = {
        "type": "boolean",
        "description": "Provide a boolean value",
    }

    def serialize(self, value: Any) -> bool:
        return bool(value)

    def deserialize(self, value: Any) -> Any:
        # From a form: bool('false') would be true.
        words = {"true": True, "false": False}
        return words.get(value.strip().lower(), value) if isinstance(value, str) else value


class Color(Base):
    """A color, in the format of the page."""

    description: ClassVar[dict[str, Any]] = {
        "type": "color",
        "description": "Provide a color value",
    }


class String(Base):
    """Text."""

    description: ClassVar[dict[str, Any]] = {
        "type": "string",
        "description": "Provide a string value",
    }

    def validate(self, value: Any) -> None:
        if not isinstance(value, str):
            raise TypeError(f'"{self.name}" must be a string, not {value!r}.')


class _Named(Base):
    """A type whose description has its name and a default text."""

    #: The name of the type in descriptions.
    paramType: ClassVar[str]
    _sentence: str

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["type"] = self.paramType
        described["description"] = self.help or self._sentence
        return described


def _is_multiple(value: Any, step: Any, start: Any = 0) -> bool:
    """Return True if a value is ``start`` and a whole number of steps."""
    if all(isinstance(number, numbers.Integral) for number in (value, step, start)):
        return bool((value - start) % step == 0)
    try:
        count = (value - start) / step
        return bool(abs(count - round(count)) <= _STEP_TOLERANCE)
    except (OverflowError, ValueError):  # infinity, and numbers that are none
        return False


class Number(_Named):
    """A number.

    Parameters
    ----------
    min, max
        The smallest and the largest value.
    step
        The value is a multiple of it, or ``min`` plus a multiple, as the page counts.

    Examples
    --------
    >>> Number('x', min=1, step=0.5).validate(1.6)
    Traceback (most recent call last):
        ...
    ValueError: "x" must be a multiple of 0.5, not 1.6.
    """

    paramType = "number"
    _sentence = "Select a number"

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.min = kwargs.get("min")
        self.max = kwargs.get("max")
        self.step = kwargs.get("step")

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        bounds = {"min": self.min, "max": self.max, "step": self.step}
        return described | {name: bound for name, bound in bounds.items() if bound is not None}

    def validate(self, value: Any) -> None:
        if not isinstance(value, numbers.Real):
            raise TypeError(f'"{self.name}" must be a number, not {value!r}.')
        if self.min is not None and value < self.min:
            raise ValueError(f'"{self.name}" must be at least {self.min}, not {value}.')
        if self.max is not None and value > self.max:
            raise ValueError(f'"{self.name}" must be at most {self.max}, not {value}.')
        if self.step and not self._is_on_step(value):
            raise ValueError(f'"{self.name}" must be a multiple of {self.step}, not {value}.')

    def _is_on_step(self, value: Any) -> bool:
        starts = {0, self.min or 0}
        return any(_is_multiple(value, self.step, start) for start in starts)

    def serialize(self, value: Any) -> Any:
        return value if self.step is None else round(float(value) / self.step) * self.step

    def deserialize(self, value: Any) -> Any:
        try:
            return float(value)
        except (TypeError, ValueError):
            return value  # validate() refuses it


class Integer(Number):
    """A whole number. The function gets an ``int``.

    >>> Integer('n').deserialize('21')
    21
    """

    paramType = "integer"

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **(kwargs | {"step": 1}))

    def serialize(self, value: Any) -> int:
        return int(super().serialize(value))

    def deserialize(self, value: Any) -> Any:
        number = super().deserialize(value)
        return int(number) if isinstance(number, float) and number.is_integer() else number

    def validate(self, value: Any) -> None:
        if isinstance(value, numbers.Real) and not _is_multiple(value, 1):
            raise ValueError(f'"{self.name}" must be a whole number, not {value}.')
        super().validate(value)


class Range(Number):
    """A number that is chosen from a range on the page."""

    paramType = "range"


class Choice(_Named):
    """One or several of a list of values.

    Parameters
    ----------
    choices
        The values.
    """

    #: Whether the value is a list of choices.
    multiple = False
    _sentence = "Choose from a list of values"

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.choices: Sequence[Any] = kwargs.get("choices", [])
        super().__init__(name, **kwargs)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "values": self.choices}

    def validate(self, value: Any) -> None:
        if self.multiple and not isinstance(value, (list, tuple)):
            raise TypeError(f'"{self.name}" must be a list or tuple, not {value!r}.')
        for one in value if self.multiple else [value]:
            if one not in self.choices:
                shown = ", ".join(map(repr, self.choices))
                raise ValueError(f'"{self.name}" must be one of {shown}, not {one!r}.')


class StringChoice(Choice):
    """One of a list of strings."""

    paramType = "string-enumeration"


class StringMultichoice(Choice):
    """Several of a list of strings."""

    paramType = "string-enumeration-multiple"
    multiple = True


class NumberChoice(Choice):
    """One of a list of numbers."""

    paramType = "number-enumeration"


class NumberMultichoice(Choice):
    """Several of a list of numbers."""

    paramType = "number-enumeration-multiple"
    multiple = True


class Vector(_Named):
    """A list of values of one type, which a page may send separated by commas.

    The parameters are those of the type.
    """

    #: The type of the elements.
    elementClass: ClassVar[type[Base]]
    separator = ","
    _sentence = "Provide a list of values"

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.element = self.elementClass(name, **kwargs)
        super().__init__(name, **kwargs)

    def validate(self, value: Any) -> None:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f'"{self.name}" must be a list or tuple, not {value!r}.')
        for one in value:
            self.element.validate(one)

    def deserialize(self, value: Any) -> list[Any]:
        parts = value.split(self.separator) if isinstance(value, str) else value
        return [self.element.deserialize(part) for part in parts]


class StringVector(Vector):
    """A list of strings.

    >>> StringVector('names').deserialize('a,b')
    ['a', 'b']
    """

    paramType = "string-vector"
    elementClass = String


class NumberVector(Vector):
    """A list of numbers."""

    paramType = "number-vector"
    elementClass = Number


class Girder(Base):
    """The id of something in Girder. The function gets the id."""


class _GirderNamed(_Named, Girder):
    """A type for the id of one kind of thing in Girder."""


class GirderItem(_GirderNamed):
    """The id of an item."""

    paramType = "file"
    _sentence = "Select an item"


class GirderFolder(_GirderNamed):
    """The id of a folder."""

    paramType = "directory"
    _sentence = "Select a folder"
