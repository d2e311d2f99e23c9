"""What the fields of a job document may hold."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.protocol.job_fields import checked_fields
from girder_dask.protocol.wire_json import from_json, to_json

DAY = dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        ("a", "a"),
        (b"ab", b"ab"),
        (DAY, DAY),
        (DAY.date(), "2026-01-02"),
        ((1, (2,)), [1, [2]]),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        ({"a": {"b": []}}, {"a": {"b": []}}),
    ],
)
def test_values_are_made_plain(value: Any, plain: Any) -> None:
    found = checked_fields({"x": value})["x"]
    assert found == plain
    assert type(found) is type(plain)


def test_an_object_id_is_kept() -> None:
    value = ObjectId()
    assert checked_fields({"x": value}) == {"x": value}
    assert to_json({"x": value}) == {"x": str(value)}


def deep() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), r"^f\['x'\] is nan"),
        ({"n": [1, math.inf]}, r"^f\['x'\]\['n'\]\[1\] is inf"),
        (np.float64("nan"), r"^f\['x'\] is nan"),
        ([1, 2**63], r"^f\['x'\]\[1\] is an integer that takes more than 64 bits"),
        (-(2**63) - 1, r"^f\['x'\] is an integer that takes more than 64 bits"),
        (["\udc80"], r"^f\['x'\]\[0\] is '\\udc80', which UTF-8 cannot hold"),
        ({"\udc80": 1}, r"^f\['x'\] has the key '\\udc80', which MongoDB cannot hold"),
        ({"a\0": 1}, r"^f\['x'\] has the key 'a\\x00', which MongoDB cannot hold"),
        ({1: 2}, r"^f\['x'\] has the key 1"),
        ({3}, r"^f\['x'\] is of type builtins\.set"),
        ([object()], r"^f\['x'\]\[0\] is of type builtins\.object"),
        (deep(), r"nested more than 50 levels"),
    ],
)
def test_what_cannot_be_held_is_named_by_its_path(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_fields({"x": value}, "f")


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(dt.timezone.utc))
)
NAMES = st.sampled_from(["a", "b64", "date", "esc"])
VALUES = st.recursive(LEAVES, lambda v: st.lists(v) | st.dictionaries(NAMES, v), max_leaves=10)


@given(st.dictionaries(NAMES, VALUES))
def test_they_come_through_json_as_they_were(fields: dict[str, Any]) -> None:
    checked = checked_fields(fields)
    assert from_json(json.loads(json.dumps(to_json(checked), allow_nan=False))) == checked
