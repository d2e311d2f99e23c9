"""Delays between tries."""

from __future__ import annotations

from itertools import islice

import pytest

from girder_dask.utils.backoff import Backoff


def test_backoff_doubles_up_to_its_maximum() -> None:
    backoff = Backoff(0.25, 1.5, jitter=0.0)
    assert list(islice(backoff.delays_s(), 5)) == [0.25, 0.5, 1.0, 1.5, 1.5]


@pytest.mark.parametrize("failures", [1, 5, 10_000])
def test_backoff_leaves_a_part_of_each_delay_to_chance(failures: int) -> None:
    full = Backoff(1.0, 60.0, jitter=0.0).delay_s(failures)
    delays = [Backoff(1.0, 60.0, jitter=0.25).delay_s(failures) for _ in range(100)]
    assert all(0.75 * full <= delay <= full for delay in delays)
    assert len(set(delays)) > 1


def test_backoff_before_any_failure_is_that_after_the_first() -> None:
    assert Backoff(1.0, 60.0, jitter=0.0).delay_s(0) == 1.0
