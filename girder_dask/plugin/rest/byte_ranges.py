"""Byte ranges of requests, as in RFC 9110 (section 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import cherrypy
from girder.api.rest import setResponseHeader
from girder.exceptions import RestException

__all__ = ["RangeNotSatisfiable", "parse", "requested"]

# A larger number is no offset of any file.
_RANGE_SPEC = re.compile(r"(\d{1,18})-(\d{1,18})?|-(\d{1,18})", re.ASCII)


class RangeNotSatisfiable(ValueError):
    """None of the requested ranges is in the file."""


def parse(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the start and the end of the requested range, or None for the whole file.

    The whole file is served if there is no header, if the header is malformed, which a server
    ignores, or if it has several ranges, which a server may ignore.

    Raises
    ------
    RangeNotSatisfiable
        If no requested range is in the file.

    Examples
    --------
    >>> parse("bytes=2-4", 10), parse("bytes=-3", 10), parse("bytes=5-99", 10)
    ((2, 5), (7, 10), (5, 10))
    >>> parse("lines=1-2", 10), parse("bytes=abc", 10), parse("bytes=0-1,4-5", 10)
    (None, None, None)
    """
    unit, equals, text = (header or "").partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = [_RANGE_SPEC.fullmatch(part.strip()) for part in text.split(",") if part.strip()]
    if not specs or not all(spec and _is_valid(spec) for spec in specs):
        return None
    ranges = list(_satisfiable(specs, size))
    if not ranges:
        raise RangeNotSatisfiable(header)
    return ranges[0] if len(specs) == 1 and ranges[0][1] > ranges[0][0] else None


def _is_valid(spec: re.Match[str]) -> bool:
    first, last, _ = spec.groups()
    return last is None or int(last) >= int(first)


def _satisfiable(specs: list[re.Match[str] | None], size: int) -> Iterator[tuple[int, int]]:
    for spec in specs:
        first, last, suffix = spec.groups() if spec else (None, None, "0")
        if suffix is not None:
            if int(suffix):
                yield max(size - int(suffix), 0), size
        elif int(first or 0) < size:
            yield int(first or 0), size if last is None else min(int(last) + 1, size)


def requested(size: int, what: str) -> tuple[int, int] | None:
    """Return the range of ``size`` bytes that this request asks for, or None for all.

    Raises
    ------
    RestException
        With the status 416.
    """
    headers = cherrypy.request.headers
    if headers.get("If-Range"):
        return None  # our answers have no validator, so the condition is false
    try:
        return parse(headers.get("Range"), size)
    except RangeNotSatisfiable as e:
        setResponseHeader("Content-Range", f"bytes */{size}")
        raise RestException(
            f"{what} has {size:,} bytes, and the requested range is not among them.",
            code=416,
        ) from e
