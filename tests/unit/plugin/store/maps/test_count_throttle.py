"""When the parents of maps are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from girder_dask.plugin.store.maps.count_throttle import CountThrottle
from tests.support.deadline import until

SHORT = 0.01


class Maps:
    """Parents, and how many of their jobs are left; None of a small one."""

    def __init__(self, **left: int | None) -> None:
        self.left = left
        self.counted: list[str] = []
        self.takes = SHORT

    def count(self, parents: Sequence[str]) -> Mapping[Any, int]:
        found = {p: left for p in parents if (left := self.left[p]) is not None}
        if found:
            time.sleep(self.takes)
        self.counted += parents
        return found


def test_a_small_one_is_counted_each_time() -> None:
    maps = Maps(a=None)
    throttle = CountThrottle(maps.count)
    for _ in range(3):
        throttle.count_soon({"a": 1})
    assert maps.counted == ["a"] * 3
    assert not throttle._ended


def test_a_large_one_rests_and_is_counted_again_without_being_asked() -> None:
    maps = Maps(a=1000, b=None)
    maps.takes = 0.1  # so that it rests for a second
    throttle = CountThrottle(maps.count)
    began = time.monotonic()
    for _ in range(10):
        throttle.count_soon({"a": 1, "b": 0})
    assert maps.counted.count("a") == 1
    assert maps.counted.count("b") == 10
    until(lambda: maps.counted.count("a") == 2)
    assert time.monotonic() - began >= 10 * maps.takes
    time.sleep(3 * SHORT)
    assert maps.counted.count("a") == 2, "nothing has changed since"


def test_a_large_one_is_counted_when_all_that_were_left_have_ended() -> None:
    maps = Maps(a=5)
    maps.takes = 0.2  # so that it would rest for long
    throttle = CountThrottle(maps.count)
    throttle.count_soon({"a": 3})
    throttle.count_soon({"a": 4})
    assert maps.counted == ["a"]
    maps.left["a"] = 0
    throttle.count_soon({"a": 1})
    assert maps.counted == ["a", "a"]


def test_what_ends_while_it_is_counted_is_not_forgotten() -> None:
    maps = Maps(a=2)
    maps.takes = 0.2
    throttle = CountThrottle(maps.count)
    counting = threading.Thread(target=throttle.count_soon, args=({"a": 1},))
    counting.start()
    time.sleep(0.05)
    throttle.count_soon({"a": 2})  # nobody knows yet that it is large
    counting.join()
    before = len(maps.counted)
    throttle.count_soon({"a": 2})
    assert len(maps.counted) > before


def test_of_one_that_is_over_nothing_is_remembered() -> None:
    maps = Maps(a=1000, b=None)
    maps.takes = 0.0
    throttle = CountThrottle(maps.count)
    throttle.count_soon({"a": 1})

    def ask_again() -> bool:
        throttle.count_soon({"b": 1})
        return not throttle._paused

    until(ask_again)
    assert not throttle._ended
