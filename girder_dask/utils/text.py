"""Text that can be stored and shown: valid UTF-8 of a bounded length."""

from __future__ import annotations

__all__ = ["MAX_LINE_CHARACTERS", "clean_text", "shortened"]

#: The most characters of one line that users are shown, such as a progress message or an error.
MAX_LINE_CHARACTERS = 10_000


def shortened(line: str) -> str:
    """Return a line cut to the length that users are shown.

    >>> len(shortened('x' * 50_000_000))
    10000
    """
    return line if len(line) <= MAX_LINE_CHARACTERS else line[: MAX_LINE_CHARACTERS - 1] + "…"


def clean_text(text: str) -> str:
    r"""Return text that UTF-8 can hold: lone surrogates are written as escapes.

    >>> clean_text('7 coins \udcff')
    '7 coins \\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
