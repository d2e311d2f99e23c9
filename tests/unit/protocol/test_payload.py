"""A call as bytes, and as people read it."""

from __future__ import annotations

import datetime as dt
import enum
import json
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.errors import ArgumentError, PayloadTooLargeError, SubmissionError
from girder_dask.protocol.display import readable
from girder_dask.protocol.payload import open_call, open_value, pack_call, pack_value
from girder_dask.transforms import GirderFileId, GirderItemMetadata

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(st.lists(plain, max_size=3), st.dictionaries(st.text(max_size=5), plain, max_size=3))
def test_what_is_packed_is_opened_as_it_was(args: list[Any], kwargs: dict[str, Any]) -> None:
    call = open_call(pack_call(args, kwargs))
    assert (call.args, call.kwargs, call.hooks, call.function) == (tuple(args), kwargs, (), None)


def test_a_function_goes_along_when_it_has_no_name() -> None:
    factor = 3
    function = open_call(pack_call((), {}, function=lambda n: n * factor)).function
    assert function is not None
    assert function(2) == 6


def test_no_client_travels_and_the_transforms_of_the_caller_keep_theirs() -> None:
    client = threading.Lock()  # cannot be pickled, and holds a secret
    file, hook = GirderFileId("5f", gc=client), GirderItemMetadata("6f", gc=client)
    call = open_call(pack_call(([{"deep": file}],), {"k": file}, [hook]))
    assert call.args[0][0]["deep"].gc is None
    assert call.args[0][0]["deep"].file_id == "5f"
    assert call.kwargs["k"].gc is None
    assert call.hooks[0].gc is None
    assert file.gc is client
    assert hook.gc is client


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("a lock of the camera")


@pytest.mark.parametrize(
    ("args", "kwargs", "hooks", "named"),
    [
        (
            (1, Unpicklable()),
            {},
            (),
            f"Argument 2 of m:f, of type {__name__}.Unpicklable",
        ),
        ((), {"a": 1, "cam": [Unpicklable()]}, (), "Argument 'cam' of m:f, of type builtins.list"),
        ((), {}, (1, Unpicklable()), "Result hook 2 of m:f"),
    ],
)
def test_what_cannot_be_pickled_is_named(args: Any, kwargs: Any, hooks: Any, named: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        pack_call(args, kwargs, hooks, task="m:f")
    message = str(caught.value)
    assert message.startswith(named)
    assert "a lock of the camera" in message
    assert "No job was created" in message
    assert caught.value.task == "m:f"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_cannot_be_pickled_may_be_the_function() -> None:
    with pytest.raises(ArgumentError, match=r"^The call cannot be pickled: a lock"):
        pack_call((), {}, function=Unpicklable())  # type: ignore[arg-type]


def test_an_argument_name_keeps_its_letters() -> None:
    with pytest.raises(ArgumentError, match="'inputFile'"):
        pack_call((), {"inputFile": Unpicklable()}, task="m:f")


def test_a_call_may_be_as_large_as_the_limit_and_no_larger() -> None:
    size = len(pack_call((b"x" * 1000,), {}))
    assert len(pack_call((b"x" * 1000,), {}, limit=size)) == size
    with pytest.raises(PayloadTooLargeError, match=rf"m:f take {size:,} bytes.*GirderFileId") as e:
        pack_call((b"x" * 1000,), {}, task="m:f", limit=size - 1)
    assert isinstance(e.value, SubmissionError)
    assert f"the {size - 1:,} that" in str(e.value)


# -- for people ----------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError


class Described(GirderFileId):
    def _repr_model_(self) -> str:
        return "a file"


class Foreign:
    """A transform of somebody else, without a description."""

    def transform(self) -> None: ...

    def cleanup(self) -> None: ...


DAY = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)


def nested(levels: int, innermost: Any) -> Any:
    value = innermost
    for _ in range(levels):
        value = [value]
    return value


DEEP, SHOWN_DEEP = nested(60, 1), nested(51, "…")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1, 1),
        (True, True),
        (None, None),
        (1.5, 1.5),
        ("a", "a"),
        (DAY, "2026-01-02T00:00:00+00:00"),
        (DAY.date(), "2026-01-02"),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        ({1: {"b": GirderFileId("5f")}}, {"1": {"b": "GirderFileId('5f')"}}),
        ([Described("5f")], ["a file"]),
        (Foreign(), "Foreign"),
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (-(2**63), "-9223372036854775808"),
        ({3}, "{3}"),
        (float("nan"), "nan"),
        ([1.5, float("-inf")], [1.5, "-inf"]),
        (DEEP, SHOWN_DEEP),
        (b"ab", "b'ab'"),
        (np.float64(1.5), "np.float64(1.5)"),
        (Colour.RED, "<Colour.RED: 1>"),
        (BadRepr(), "<BadRepr whose repr raised RuntimeError>"),
        ("x" * 10_001, "x" * 10_000 + "…"),
        ("x" * 10_000, "x" * 10_000),
    ],
)
def test_values_are_shown_as_people_read_them(value: Any, shown: Any) -> None:
    assert readable(value) == shown
    assert type(readable(value)) is type(shown)


def test_many_values_are_cut() -> None:
    assert readable(list(range(1002)))[999:] == [999, "… and 2 more"]
    assert readable(tuple(range(1000))) == list(range(1000))
    assert len(readable({n: n for n in range(2000)})) == 1000
    assert len(readable(np.zeros(10**6))) < 1000


@given(plain)
def test_what_is_shown_is_plain(value: Any) -> None:
    assert json.loads(json.dumps(readable(value))) == readable(value)


# -- results -------------------------------------------------------------------------------


@given(plain)
def test_a_plain_result_is_opened_without_unpickling(value: Any) -> None:
    assert open_value(pack_value(value), unpickle=False) == value


@pytest.mark.parametrize("value", [{1, 2}, np.float64(1.5), Colour.RED])
def test_any_other_result_is_opened_only_where_unpickling_is_allowed(value: Any) -> None:
    data = pack_value(value)
    assert open_value(data, unpickle=True) == value
    with pytest.raises(ValueError, match="pickled"):
        open_value(data, unpickle=False)


def test_a_number_that_json_cannot_hold_is_a_result_like_others() -> None:
    """Python refuses to write integers of more than 4300 digits as text."""
    assert open_value(pack_value([10**5000]), unpickle=True) == [10**5000]
