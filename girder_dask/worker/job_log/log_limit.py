"""The limit on the output of one job, whose beginning and end are kept."""

from __future__ import annotations

import math
from collections import deque

from girder_dask.protocol.log_limit import LOG_END_BYTES, gap_line, limit_line

__all__ = ["LogLimit"]


class LogLimit:
    """Filter that passes text up to a limit, and keeps the end of what follows. Not thread-safe.

    Parameters
    ----------
    max_bytes
        Bytes, as UTF-8, that pass.

    Attributes
    ----------
    is_reached
        Whether nothing passes from now on.
    left_out_bytes
        Bytes that were dropped.

    Examples
    --------
    >>> limit = LogLimit(8)
    >>> limit.admit("7 coins\\n"), limit.is_reached
    ('7 coins\\n', False)
    >>> limit.admit("and a button"), limit.is_reached
    ('', True)
    >>> limit.end()
    'and a button'
    """

    def __init__(self, max_bytes: float = math.inf) -> None:
        self._max_bytes = max_bytes
        self._used = 0
        self._end: deque[tuple[str, int]] = deque()
        self._end_length = 0
        self.is_reached = False
        self.left_out_bytes = 0

    def admit(self, text: str) -> str:
        """Return the part of a text that passes, with a mark where the rest is dropped."""
        passed = ""
        if not self.is_reached:
            size = _size(text)
            if self._used + size <= self._max_bytes:
                self._used += size
                return text
            self.is_reached = True
            passed, text = _split(text, int(self._max_bytes) - self._used)
        was_whole = not self.left_out_bytes
        self._keep(text)
        is_first = was_whole and self.left_out_bytes
        return passed + limit_line(int(self._max_bytes)) if is_first else passed

    def _keep(self, text: str) -> None:
        if len(text) > LOG_END_BYTES:
            dropped, text = text[:-LOG_END_BYTES], text[-LOG_END_BYTES:]
            self.left_out_bytes += _size(dropped)
        self._end.append((text, _size(text)))
        self._end_length += len(text)
        while self._end_length - len(self._end[0][0]) >= LOG_END_BYTES:
            first, size = self._end.popleft()
            self._end_length -= len(first)
            self.left_out_bytes += size

    def end(self) -> str:
        """Return the end of what did not pass, after a line with the number of missing bytes."""
        text = "".join(text for text, _ in self._end)
        self._end.clear()
        if not self.left_out_bytes:
            return text
        return gap_line(self.left_out_bytes) + text


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "backslashreplace"))


def _split(text: str, max_bytes: int) -> tuple[str, str]:
    """Split a text after at most ``max_bytes`` bytes, not within a character."""
    data = text.encode("utf-8", "backslashreplace")
    head = data[:max_bytes].decode("utf-8", "ignore")
    return head, data[len(head.encode()) :].decode("utf-8")
