"""The answers of the plugin's routes: documents as strict JSON, and errors in our words.

Girder turns what a route returns into JSON after the route has returned. What JSON cannot hold
would then become a 500 for a request that has done its work. So our routes return their JSON
ready, and :func:`encode` is the one place where a document becomes JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import cherrypy
from girder.exceptions import AccessException, RestException, ValidationException
from girder.utility import JsonEncoder
from pymongo.errors import (
    BulkWriteError,
    DocumentTooLarge,
    DuplicateKeyError,
    PyMongoError,
    WriteError,
)

from girder_dask.errors import GirderDaskError, GirderError
from girder_dask.plugin.store.database import UNSTORABLE, describe_error
from girder_dask.plugin.store.dependency_access import DependencyRefused

__all__ = ["MAX_NESTING_LEVELS", "encode", "nesting_levels", "to_json_values", "translated_errors"]

logger = logging.getLogger(__name__)

#: The most levels of lists and objects in what a request holds and in what is answered.
MAX_NESTING_LEVELS = 150

# -- documents ----------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Return a value as strict JSON, whatever is in it.

    >>> encode({"total": float("nan"), 5: "x"})
    b'{"5": "x", "total": null}'
    """
    try:
        return _dumped(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _dumped(to_json_values(value))


def _dumped(value: Any) -> bytes:
    text: str = json.dumps(value, sort_keys=True, allow_nan=False, cls=JsonEncoder)
    return text.encode("ascii")


def to_json_values(value: Any, _level: int = 0) -> Any:
    """Return a value that JSON can hold. Numbers that are not finite become null.

    >>> to_json_values({"a": float("inf"), 1: {2}, "b": [b"x"]})
    {'a': None, '1': [2], 'b': ["b'x'"]}
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if _level >= MAX_NESTING_LEVELS:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): to_json_values(inner, _level + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_values(inner, _level + 1) for inner in value]
    try:
        return json.loads(_dumped(value))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return str(value)


def nesting_levels(value: Any) -> int:
    """Return how many lists and mappings are within each other.

    >>> nesting_levels(5), nesting_levels([]), nesting_levels({"a": [1, {"b": 2}]})
    (0, 1, 3)
    """
    depth, inner = 0, [value] if isinstance(value, (dict, list)) else []
    while inner:
        depth += 1
        if depth > MAX_NESTING_LEVELS:
            break
        inner = [
            part
            for container in inner
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, (dict, list))
        ]
    return depth


# -- errors -------------------------------------------------------------------------------------


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise errors that Girder answers as they deserve, with a message of ours.

    Errors that nobody has foreseen are logged, and nothing of them is told.
    """
    try:
        yield
    except (RestException, AccessException, ValidationException, cherrypy.CherryPyException):
        raise
    except DependencyRefused as e:
        raise AccessException(str(e)) from e
    except GirderDaskError as e:
        raise RestException(str(e), code=_status(e)) from e
    except UNSTORABLE as e:
        raise RestException(f"The request cannot be answered: {describe_error(e)}.") from e
    except PyMongoError as e:
        logger.warning("A request failed, as Girder's database refused it: %s", e)
        raise _of_database(e) from e
    except Exception as e:
        logger.exception("A route of girder_dask failed")
        uid = getattr(cherrypy.request, "girderRequestUid", "unknown")
        raise RestException(
            f"Girder could not answer this request. The cause is in its log, at request {uid}.",
            code=500,
        ) from e


def _status(error: GirderDaskError) -> int:
    # Without a status it is the database that did not answer.
    return (error.status or 503) if isinstance(error, GirderError) else 400


def _of_database(error: PyMongoError) -> RestException:
    if isinstance(error, (WriteError, BulkWriteError, DuplicateKeyError, DocumentTooLarge)):
        return RestException("Girder's database does not take what the request holds.")
    return RestException("Girder's database does not answer. Send the request again.", code=503)
