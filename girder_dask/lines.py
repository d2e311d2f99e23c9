"""Whole lines from several writers.

``print`` hands over a text and its newline in two steps. A thread that loses its turn between
the two would find the line of another in the middle of its own.
"""

from __future__ import annotations

import time
from collections import deque

__all__ = ["GRACE", "Lines"]

#: Seconds that others wait for a writer to end the line that it has begun. Enough for a
#: thread that lost its turn inside ``print``, short enough that nobody sees it.
GRACE = 0.1


class Lines:
    """Puts texts in the order of writing, but lets a line that is begun be ended first.

    What is begun is in :attr:`pieces` at once. What others write meanwhile is held, for
    :data:`GRACE` seconds at most. Not thread safe: the owner holds a lock around each call.

    Examples
    --------
    >>> lines = Lines()
    >>> lines.add(1, "one")
    >>> lines.add(2, "two\\n")
    >>> lines.add(1, "\\n")
    >>> "".join(lines.pieces)
    'one\\ntwo\\n'
    """

    def __init__(self) -> None:
        #: The texts in order, to be taken from the left.
        self.pieces: deque[str] = deque()
        self._writer: int | None = None  # who has begun a line
        self._since = 0.0  # when it last added to it
        self._held: list[tuple[int, str]] = []
        self._held_since = 0.0

    def add(self, writer: int, text: str) -> None:
        """Add a text, which is not empty, of ``writer``: any number that stands for one."""
        self.release_due()
        if self._writer is not None and self._writer != writer:
            if self._held:
                self._held.append((writer, text))
                return
            now = time.monotonic()
            if now - self._since < GRACE:
                self._held_since = now
                self._held.append((writer, text))
                return
        self.pieces.append(text)
        if text[-1] != "\n":
            self._writer, self._since = writer, time.monotonic()
        elif self._writer is not None:
            self._writer = None
            if self._held:
                self._release()

    def remaining(self) -> float | None:
        """Return the seconds until something held is due, None if nothing is held."""
        if not self._held:
            return None
        return self._held_since + GRACE - time.monotonic()

    def release_due(self) -> None:
        """Let those write who were held long enough."""
        if self._held and time.monotonic() - self._held_since >= GRACE:
            self._release()

    def settle(self) -> None:
        """Put everything in order as it came, and regard every line as ended."""
        self.pieces.extend(text for _, text in self._held)
        self._held.clear()
        self._writer = None

    def _release(self) -> None:
        # Each in turn, and one of them may now hold up the others.
        held, self._held, self._writer = self._held, [], None
        for writer, text in held:
            self.add(writer, text)
