"""Descriptions: those of girder_worker's own decorators, ours, and what is better in ours."""

from __future__ import annotations

import importlib
import inspect
import math
import types as python_types
from pathlib import Path
from typing import Any

import girder_worker_utils.types as their_types
import pytest
from girder_worker_utils.decorators import argument as their_argument

from girder_dask import app, describing, girder_job, task
from girder_dask.describing import argument, types

# -- the tests that girder_worker_utils ships, run on ours ------------------------------------


def adapted(module: str) -> python_types.ModuleType:
    """Return a test module of girder_worker_utils that imports our names instead of its own."""
    spec = importlib.util.find_spec(f"girder_worker_utils.tests.{module}")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    source = source.replace("girder_worker_utils.decorators", "girder_dask.describing")
    source = source.replace(
        "girder_worker_utils import decorators", "girder_dask import describing"
    )
    source = source.replace("decorators.", "describing.")
    source = source.replace(
        "girder_worker_utils import types", "girder_dask.describing import types"
    )
    assert "girder_worker_utils" not in source
    made = python_types.ModuleType(f"adapted_{module}")
    exec(compile(source, spec.origin, "exec"), vars(made))  # noqa: S102 - it is installed here
    return made


THEIRS = [
    pytest.param(function, id=name)
    for module in ("decorators_test", "types_test")
    for name, function in vars(adapted(module)).items()
    if name.startswith("test_")
]


def test_girder_worker_tests_are_all_there():
    assert len(THEIRS) == 14


@pytest.mark.parametrize("test", THEIRS)
def test_girder_worker_utils_tests_pass(test: Any) -> None:
    assert not inspect.signature(test).parameters
    test()


# -- the same descriptions --------------------------------------------------------------------

ARGUMENTS: list[tuple[str, str, dict[str, Any], Any]] = [
    ("flag", "Boolean", {}, True),
    ("tint", "Color", {}, "#fff"),
    ("folder", "GirderFolder", {}, "f"),
    ("item", "GirderItem", {"help": "Which"}, "i"),
    ("n", "Integer", {"min": 1, "max": 9}, 2),
    ("x", "Number", {"step": 0.5, "help": "How much"}, 1.5),
    ("one", "NumberChoice", {"choices": [1, 2]}, 1),
    ("some", "NumberMultichoice", {"choices": [1, 2]}, [1]),
    ("values", "NumberVector", {}, [1, 2]),
    ("range", "Range", {"min": 0, "max": 1}, 0.5),
    ("name", "String", {"id": "title"}, "eve"),
    ("unit", "StringChoice", {"choices": ["mm", "px"]}, "mm"),
    ("units", "StringMultichoice", {"choices": ["mm", "px"]}, ["mm"]),
    ("names", "StringVector", {}, ["a"]),
]


def described(decorate: Any, module: Any, name: str, kind: str, options: Any, default: Any) -> Any:
    """Return a function with one described argument."""
    names: dict[str, Any] = {"default": default}
    exec(f"def function({name}=default):\n    'Does it.'\n    return {name}", names)  # noqa: S102
    return decorate(name, getattr(module, kind), **options)(names["function"])


@pytest.mark.parametrize(("name", "kind", "options", "default"), ARGUMENTS, ids=str)
def test_describe_returns_what_girder_worker_returns(
    name: str, kind: str, options: Any, default: Any
) -> None:
    ours = described(argument, types, name, kind, options, default)
    theirs = described(their_argument, their_types, name, kind, options, default)
    assert ours.describe() == theirs.describe()


@pytest.mark.parametrize(("name", "kind", "options", "default"), ARGUMENTS, ids=str)
def test_describe_of_each_package_reads_the_other(
    name: str, kind: str, options: Any, default: Any
) -> None:
    mixed = described(argument, their_types, name, kind, options, default)
    other = described(their_argument, types, name, kind, options, default)
    expected = described(their_argument, their_types, name, kind, options, default).describe()
    assert describing.describe(mixed) == describing.describe(other) == expected
    binding = {options.get("id", name): {"data": default}}
    assert describing.call_item_task(mixed, binding) == default
    assert describing.call_item_task(other, binding) == default
    assert other.call_item_task(binding) == default


# -- tasks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decorate", "kinds"), [(argument, types), (their_argument, their_types)])
def test_describe_takes_tasks(decorate: Any, kinds: Any) -> None:
    @girder_job(title="Repeat")
    @app.task
    @decorate("text", kinds.String)
    @decorate("n", kinds.Integer, min=1)
    def repeat(text: str, n: int = 2) -> str:
        """Repeat a text."""
        return text * int(n)

    assert repeat.describe()["description"] == "Repeat a text."
    assert [i["name"] for i in repeat.describe()["inputs"]] == ["text", "n"]
    assert repeat.call_item_task({"text": {"data": "ab"}}) == "abab"
    assert repeat.call_item_task({"text": {"data": "ab"}, "n": {"data": 3}}, outputs={}) == "ababab"
    assert describing.parse_inputs(repeat, {"text": {"data": "x"}}) == ([], {"text": "x"})


@pytest.mark.parametrize(("decorate", "kinds"), [(argument, types), (their_argument, their_types)])
def test_call_item_task_passes_the_job_to_bound_tasks(decorate: Any, kinds: Any) -> None:
    @task(bind=True)
    @decorate("n", kinds.Integer)
    def tell(self: Any, n: int) -> Any:
        return type(self).__name__, n

    assert tell.call_item_task({"n": {"data": 3}}) == ("RunningJob", 3)
    assert tell.options(priority=1).call_item_task({"n": {"data": 3}}) == ("RunningJob", 3)


def test_argument_may_stand_above_the_task():
    @argument("n", types.Integer)
    @task
    def double(n: int) -> int:
        return 2 * n

    assert double.describe()["inputs"][0]["type"] == "integer"
    assert double.options(retries=1).call_item_task({"n": {"data": "4"}}) == 8


def test_describe_keeps_functions_of_one_name_apart():
    @argument("a", types.String)
    def first(a: str) -> str:
        return a

    @argument("b", types.String)
    def second(b: str) -> str:
        return b

    assert [i["id"] for i in first.describe()["inputs"]] == ["a"]
    assert [i["id"] for i in second.describe()["inputs"]] == ["b"]


# -- what is better ---------------------------------------------------------------------------


def test_integer_arrives_as_int():
    assert their_types.Integer("n").deserialize("3") == 3.0
    value = types.Integer("n").deserialize("3")
    assert (value, type(value)) == (3, int)
    with pytest.raises(ValueError, match="whole number"):
        types.Integer("n").validate(2.5)


@pytest.mark.parametrize(
    ("options", "taken", "refused"),
    [
        ({"step": 0.5}, [0, -1.5, 2], [1.6, 0.49, math.nan, math.inf]),
        ({"step": 0.1, "min": 0.05}, [0.05, 0.25, 0.3, 0.1 * 3], [0.31, 10**400]),
        ({"step": 3, "min": 1}, [1, 3, 10**400 - 1], [2, 2.5, 10**400 + 1]),
        ({}, [0.123, 10**400, math.inf], ["1", None]),
    ],
    ids=str,
)
def test_number_validates_its_step(options, taken, refused):
    number = types.Number("x", **options)
    for value in taken:
        number.validate(value)
    for value in refused:
        with pytest.raises((ValueError, TypeError), match='"x" must be a'):
            number.validate(value)


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf])
def test_integer_refuses_what_is_not_whole(value):
    with pytest.raises(ValueError, match="must be a whole number"):
        types.Integer("n").validate(value)
    types.Integer("n").validate(10**400)


def test_boolean_of_a_form_arrives_as_bool():
    assert types.Boolean("b").deserialize("False") is False
    assert types.Boolean("b").deserialize(True) is True


def test_describe_includes_a_default_of_none():
    @argument("n", types.Integer)
    def function(n: int | None = None) -> int | None:
        return n

    assert function.describe()["inputs"][0]["default"] == {"data": None}


def test_parse_inputs_names_the_argument_in_errors():
    @argument("unit", types.StringChoice, choices=["mm", "px"])
    def measure(unit: str) -> str:
        return unit

    with pytest.raises(describing.MissingInputException, match=r"measure needs the input 'unit'"):
        measure.call_item_task({})
    with pytest.raises(ValueError, match="one of 'mm', 'px', not 'in'"):
        measure.call_item_task({"unit": {"data": "in"}})
    with pytest.raises(ValueError, match="'unit' is bound as"):
        measure.call_item_task({"unit": {"mode": "http"}})
    with pytest.raises(describing.MissingDescriptionException, match="@argument"):
        task(lambda: None).describe()
    with pytest.raises(ValueError, match=r"measure\(unit: 'str'\) -> 'str' has no parameter 'n'"):
        argument("n", types.Integer)(measure)
