"""A bound for the output of one job: its beginning is kept, and its end."""

from __future__ import annotations

import math
from collections import deque

from girder_dask.protocol.log_limit import LOG_END_BYTES, gap_line, limit_line

__all__ = ["LogLimit"]


class LogLimit:
    """Lets so much text pass, and keeps the end of what exceeds it. Not thread safe.

    Parameters
    ----------
    most
        Bytes, as UTF-8, that pass.

    Examples
    --------
    >>> bound = LogLimit(8)
    >>> bound.admit("7 coins\\n"), bound.reached
    ('7 coins\\n', False)
    >>> bound.admit("and no more"), bound.reached
    ('', True)
    >>> bound.end()
    'and no more'
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._used = 0
        self._end: deque[tuple[str, int]] = deque()
        self._end_length = 0
        #: Whether no more passes.
        self.reached = False
        #: The bytes that were let go of.
        self.left_out = 0

    def admit(self, text: str) -> str:
        """Return what passes of a text: in the end nothing but a mark."""
        passed = ""
        if not self.reached:
            size = _size(text)
            if self._used + size <= self._most:
                self._used += size
                return text
            self.reached = True
            passed, text = _split(text, int(self._most) - self._used)
        was_whole = not self.left_out
        self._keep(text)
        return passed + limit_line(int(self._most)) if was_whole and self.left_out else passed

    def _keep(self, text: str) -> None:
        if len(text) > LOG_END_BYTES:
            dropped, text = text[:-LOG_END_BYTES], text[-LOG_END_BYTES:]
            self.left_out += _size(dropped)
        self._end.append((text, _size(text)))
        self._end_length += len(text)
        while self._end_length - len(self._end[0][0]) >= LOG_END_BYTES:
            first, size = self._end.popleft()
            self._end_length -= len(first)
            self.left_out += size

    def end(self) -> str:
        """Return the end of what did not pass, and say how much is missing before it."""
        text = "".join(text for text, _ in self._end)
        self._end.clear()
        if not self.left_out:
            return text
        return gap_line(self.left_out) + text


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "backslashreplace"))


def _split(text: str, most: int) -> tuple[str, str]:
    """Divide a text where so many bytes are full, not within a character."""
    data = text.encode("utf-8", "backslashreplace")
    head = data[:most].decode("utf-8", "ignore")
    return head, data[len(head.encode()) :].decode("utf-8")
