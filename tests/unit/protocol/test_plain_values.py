"""Plain values survive the way over JSON; nothing else takes it."""

from __future__ import annotations

import enum
import pickle
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.protocol.payload import open_value, pack_value
from girder_dask.protocol.plain_values import dump_plain, load_plain

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(scalars | st.tuples(scalars), inner)
        | st.dictionaries(st.sampled_from(["~tuple", "~bytes", "~dict", "a"]), inner)
    ),
    max_leaves=20,
)


def shape(value: Any) -> Any:
    """Return a value with the types of all that it holds, since 1 == True == 1.0."""
    if isinstance(value, dict):
        return dict, [(shape(k), shape(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [shape(v) for v in value]
    return type(value), value


@given(values)
def test_a_plain_value_comes_back_as_it_was(value: Any) -> None:
    assert shape(load_plain(dump_plain(value))) == shape(value)


@pytest.mark.parametrize("value", [b"\xff" * 100_000, "é" * 50_000, ["\u20ac" * 33_000, b"x"]])
def test_packing_adds_next_to_nothing(value: Any) -> None:
    raw = "".join(v if isinstance(v, str) else "x" for v in value).encode()
    size = len(value) if isinstance(value, bytes) else len(raw)
    assert size <= len(dump_plain(value)) < size + 100
    assert load_plain(dump_plain(value)) == value


@pytest.mark.parametrize("most", [1, 5, 20, 27])
def test_what_is_cut_off_is_refused(most: int) -> None:
    data = dump_plain([b"coins", 1])
    with pytest.raises(ValueError, match=r"cut off|line 1 column"):
        load_plain(data[: min(most, len(data) - 1)])


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    "value", [{1}, Colour.RED, Point(1, 2), object(), [1, {"a": 2j}], bytearray(b"x"), print]
)
def test_nothing_else_is_plain(value: Any) -> None:
    with pytest.raises(TypeError):
        dump_plain(value)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return sprung.append, (True,)


sprung: list[bool] = []


def test_what_is_not_plain_is_opened_only_where_that_is_allowed() -> None:
    assert open_value(pack_value(Point(1, 2)), unpickle=True) == Point(1, 2)
    assert open_value(pack_value((1, b"x")), unpickle=False) == (1, b"x")
    trap = pack_value(Trap())
    with pytest.raises(ValueError, match="pickled"):
        open_value(trap, unpickle=False)
    assert sprung == []


def test_a_value_that_is_nested_too_deep_for_json_is_pickled_or_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((RecursionError, pickle.PicklingError)):
        pack_value(deep)
