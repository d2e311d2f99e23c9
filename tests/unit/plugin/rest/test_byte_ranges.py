"""Which part of what is served a request asks for, by RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.plugin.rest.byte_ranges import RangeNotSatisfiable, parse

SIZE = 100


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-", (90, 100)),
        ("bytes=99-99999", (99, 100)),
        ("bytes=0-99999", (0, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-99999", (0, 100)),
        ("Bytes = 1-2", (1, 3)),
        ("bytes= 1-2 ,", (1, 3)),
    ],
)
def test_parse_returns_a_range(header: str, part: tuple[int, int]) -> None:
    assert parse(header, SIZE) == part


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "bytes", "bytes=", "bytes=,", "bytes=abc-def", "bytes=-", "bytes=5-2"),
        *("bytes=1-2-3", "bytes=+1-2", "bytes=1_0-20", "bytes=٣-٤", "bytes=--5", "bytes=1 - 2"),
        *("lines=1-2", "items=0-5", "bytes=1-x,2-3", "bytes=0-1,5-6", "bytes=" + "9" * 5000 + "-"),
        *("bytes 0-1", "=0-1", "bytes==0-1"),
    ],
)
def test_parse_returns_none_for_anything_but_one_range(header: str | None) -> None:
    assert parse(header, SIZE) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=500-,600-"])
def test_parse_refuses_a_range_outside_the_file(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse(header, SIZE)


def test_parse_finds_no_range_in_an_empty_file() -> None:
    assert parse("bytes=-5", 0) is None
    with pytest.raises(RangeNotSatisfiable):
        parse("bytes=0-", 0)


@given(st.text(alphabet="0123456789-,= bytesx", max_size=30), st.integers(0, 50))
def test_parse_returns_a_range_within_the_file_for_any_header(text: str, size: int) -> None:
    try:
        part = parse(f"bytes={text}", size)
    except RangeNotSatisfiable:
        return
    assert part is None or 0 <= part[0] < part[1] <= size
