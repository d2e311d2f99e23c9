"""One-line descriptions of errors and values, even of those whose own methods fail."""

from __future__ import annotations

from typing import Any

from girder_dask.protocol.redaction import clean_text, clean_urls
from girder_dask.utils.foreign_objects import call_or_default, exact_text
from girder_dask.utils.text import MAX_LINE_CHARACTERS, shortened

__all__ = ["name_of", "summary"]


def summary(error: BaseException) -> str:
    """Return the type and the message of an error in one line.

    >>> summary(ValueError('no coins'))
    'ValueError: no coins'
    """
    name = call_or_default(lambda: exact_text(_kind_of(error)), "an exception")
    text = call_or_default(lambda: _line_of(error), "")
    return f"{name}: {text}" if text else name


def _kind_of(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _line_of(error: BaseException) -> str:
    # Cut before cleaning: a text may be very long.
    text = exact_text(str(error))[: 4 * MAX_LINE_CHARACTERS]
    return clean_text(clean_urls(shortened(" ".join(text.split()))))


def name_of(value: Any) -> str:
    """Return the ``repr`` of a value, or the name of its type if that fails."""
    return call_or_default(lambda: exact_text(repr(value)), type(value).__name__)
