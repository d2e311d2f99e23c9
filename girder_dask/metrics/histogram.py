"""Histogram that counts in memory, and its buckets."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

__all__ = ["LAG_BOUNDS_S", "QUEUE_BOUNDS_S", "RUN_BOUNDS_S", "Histogram", "cumulative"]

#: The upper bounds in seconds of the buckets of each kind of time. Their number times that of the
#: tasks is the number of time series.
LAG_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0)
QUEUE_BOUNDS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
RUN_BOUNDS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)


class Histogram:
    """Counts of observations in buckets, and their sum.

    Parameters
    ----------
    bounds
        The upper bounds of the buckets in ascending order. A last bucket holds what is beyond.

    Examples
    --------
    >>> histogram = Histogram((1.0, 10.0))
    >>> for seconds in (0.5, 1.0, 20.0):
    ...     histogram.observe(seconds)
    >>> histogram.counts, histogram.sum
    ([2, 0, 1], 21.5)
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value. One below zero, of clocks that differ, counts as zero."""
        value = max(value, 0.0)
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


def cumulative(bounds: Sequence[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """Return the buckets of a histogram as Prometheus has them: each includes those before it.

    >>> cumulative((1.0, 10.0), [2, 0, 1])
    [('1.0', 2), ('10.0', 2), ('+Inf', 3)]
    """
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
