"""Exponential backoff with jitter.

Without jitter, all processes that lose the same server reconnect to it at the same moments.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Backoff"]

# The system's source of random numbers: it has no state that other code could seed or a fork share.
_random = random.SystemRandom()
# 2.0 ** 1024 overflows.
_MAX_EXPONENT = 64


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays between tries: doubled after each failure, up to a maximum, with jitter.

    Parameters
    ----------
    first_s
        Seconds after the first failure.
    max_s
        Seconds after many failures, at most.
    jitter
        The random part of a delay: a delay of 1 s lasts 0.5 to 1 s by default.
        A test that measures delays sets it to 0.

    Examples
    --------
    >>> exact = Backoff(1.0, 5.0, jitter=0.0)
    >>> [exact.delay_s(failures) for failures in (1, 2, 3, 4)]
    [1.0, 2.0, 4.0, 5.0]
    >>> 0.5 <= Backoff(1.0, 5.0).delay_s(1) <= 1.0
    True
    """

    first_s: float
    max_s: float
    jitter: float = 0.5

    def delay_s(self, failures: int) -> float:
        """Return the seconds to wait after this number of failures in a row."""
        exponent = min(max(failures, 1) - 1, _MAX_EXPONENT)
        delay_s = min(self.first_s * 2.0**exponent, self.max_s)
        return delay_s * (1.0 - self.jitter * _random.random())

    def delays_s(self) -> Iterator[float]:
        """Yield the seconds to wait after the first failure, the second, and so on without end.

        >>> delays = Backoff(1.0, 3.0, jitter=0.0).delays_s()
        >>> [next(delays) for _ in range(3)]
        [1.0, 2.0, 3.0]
        """
        failures = 0
        while True:
            failures += 1
            yield self.delay_s(failures)
