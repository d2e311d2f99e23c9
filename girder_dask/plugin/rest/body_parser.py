"""Parsing of the JSON bodies of requests, within limits of size and depth."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import cherrypy
import msgspec
from girder.exceptions import RestException

from girder_dask.plugin.rest.response_json import MAX_NESTING_LEVELS, nesting_levels
from girder_dask.protocol.patterns import explain_mismatch

__all__ = ["MAX_BODY_BYTES", "read_body", "read_body_as", "require_json"]

T = TypeVar("T")

#: The most bytes of a body. A scheduler sends at most about half of them.
MAX_BODY_BYTES = 64 * 1024**2


def read_body(
    *, lenient: bool = False, max_bytes: int = MAX_BODY_BYTES, max_containers: int | None = None
) -> dict[str, Any]:
    """Return the JSON object in the body of this request.

    Parameters
    ----------
    lenient
        Whether ``NaN`` and ``Infinity`` become null instead of an error.
    max_bytes
        The largest size in bytes.
    max_containers
        The most lists and objects in it, each of which costs as much as many characters.

    Raises
    ------
    RestException
        If the body is malformed or too large.
    """
    data = cherrypy.request.body.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RestException(f"The body is larger than {max_bytes:,} bytes.", code=413)
    if max_containers is not None and data.count(b"[") + data.count(b"{") > max_containers:
        raise RestException(
            f"The body has more than {max_containers:,} lists and objects.", code=413
        )
    try:
        body = json.loads(data, parse_constant=_to_null if lenient else _refuse)
    except (ValueError, RecursionError) as e:
        raise RestException(f"The body is not JSON: {e}.") from e
    if not isinstance(body, dict):
        raise RestException("The body is not a JSON object.")
    if nesting_levels(body) > MAX_NESTING_LEVELS:
        raise RestException(
            f"The body has more than {MAX_NESTING_LEVELS} levels of lists and objects."
        )
    return body


def read_body_as(
    kind: type[T],
    *,
    lenient: bool = False,
    max_bytes: int = MAX_BODY_BYTES,
    max_containers: int | None = None,
) -> T:
    """Return the body of this request as a struct. The parameters are those of :func:`read_body`.

    Raises
    ------
    RestException
        If the body is malformed or too large. The message names the field.
    """
    body = read_body(lenient=lenient, max_bytes=max_bytes, max_containers=max_containers)
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as e:
        raise RestException(f"The body cannot be read: {explain_mismatch(e)}.") from e


def _to_null(_constant: str) -> None:
    # One number of one job must not stop the updates of all others.
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no number {constant}")


def require_json() -> None:
    """Refuse a body whose media type is not JSON, such as an uploaded file.

    Raises
    ------
    RestException
        With the status 415.
    """
    kind = cherrypy.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RestException(
            f"The media type of the body is {kind or 'missing'}. Send it as application/json.",
            code=415,
        )
