"""Whole lines from several writers.

``print`` writes a text and its newline in two steps. If another thread writes between the
two, its line must not end up in the middle of the first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["RETRY_DELAY_S", "LineAssembler"]

#: Seconds after which :meth:`LineAssembler.retry` must be called while a line is held.
RETRY_DELAY_S = 0.02

#: Most seconds that lines are held.
_MAX_HOLD_S = 1.0

#: Length of the longest piece. Taking part of a piece copies the rest.
_MAX_PIECE_CHARACTERS = 64 * 1024


class LineAssembler:
    """Texts in the order of writing, each line ended before the next begins.

    The beginning of a line is in :attr:`pieces` at once. Text of others is held while its writer
    is busy. Not thread-safe: the owner holds a lock around each call.

    Parameters
    ----------
    is_busy
        Called with a writer and the ``time.monotonic()`` of its last write. Returns True if it
        is about to end its line.

    Examples
    --------
    >>> lines = LineAssembler(is_busy=lambda writer, since: writer == 1)
    >>> lines.add(1, "one"), lines.add(2, "two\\n"), lines.add(1, "\\n")
    (False, True, False)
    >>> "".join(lines.pieces)
    'one\\ntwo\\n'
    """

    def __init__(self, is_busy: Callable[[int, float], bool]) -> None:
        #: The texts in order, to be taken from the left.
        self.pieces: deque[str] = deque()
        self._is_busy = is_busy
        self._writer: int | None = None  # of an unended line
        self._since = 0.0  # when it last added to it
        self._held: list[tuple[int, list[str]]] = []  # lines, in the order of their beginnings
        self._unended: dict[int, list[str]] = {}  # the held lines that are not ended
        self._held_since = 0.0

    @property
    def is_holding(self) -> bool:
        """Whether a line waits for the end of another's."""
        return bool(self._held)

    def add(self, writer: int, text: str) -> bool:
        """Add a text that is not empty. ``writer`` is the number of its writer.

        Return True if a line is held, so that :meth:`retry` must be called soon.
        """
        if self._writer is not None and self._writer != writer and self._must_hold():
            self._hold(writer, text)
            return True
        self._append(text)
        if text[-1] != "\n":
            self._writer, self._since = writer, time.monotonic()
        elif self._writer is not None:
            self._writer = None
            if self._held:
                self._release()
        return bool(self._held)

    def take(self, limit: int | None) -> str:
        """Remove and return the first texts, at most ``limit`` characters."""
        if limit is None:
            limit = sum(map(len, self.pieces))
        taken: list[str] = []
        while self.pieces and limit > 0:
            piece = self.pieces.popleft()
            if len(piece) > limit:
                self.pieces.appendleft(piece[limit:])
                piece = piece[:limit]
            taken.append(piece)
            limit -= len(piece)
        return "".join(taken)

    def retry(self) -> None:
        """Release held lines, unless the writer that they wait for is still busy."""
        if self._held and (
            time.monotonic() - self._held_since > _MAX_HOLD_S or not self._writer_is_busy()
        ):
            self._release()

    def leave(self, writer: int) -> None:
        """Treat the line of ``writer`` as ended, if it has begun one."""
        if self._writer == writer:
            self._release()

    def settle(self) -> None:
        """Release everything in the order of arrival, and treat every line as ended."""
        for _, parts in self._held:
            self._append("".join(parts))
        self._held.clear()
        self._unended.clear()
        self._writer = None

    def _append(self, text: str) -> None:
        if len(text) <= _MAX_PIECE_CHARACTERS:
            self.pieces.append(text)
        else:
            self.pieces.extend(
                text[n : n + _MAX_PIECE_CHARACTERS]
                for n in range(0, len(text), _MAX_PIECE_CHARACTERS)
            )

    def _hold(self, writer: int, text: str) -> None:
        parts = self._unended.pop(writer, None)
        if parts is None:
            parts = []
            self._held.append((writer, parts))
        parts.append(text)
        if text[-1] != "\n":
            self._unended[writer] = parts

    def _must_hold(self) -> bool:
        if self._held:
            return True
        self._held_since = time.monotonic()
        return self._writer_is_busy()

    def _writer_is_busy(self) -> bool:
        return self._writer is not None and self._is_busy(self._writer, self._since)

    def _release(self) -> None:
        # A writer among them that has not ended its line may delay the others again.
        held, self._held, self._unended, self._writer = self._held, [], {}, None
        for writer, parts in held:
            self.add(writer, "".join(parts))
