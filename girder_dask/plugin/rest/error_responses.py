"""Errors as HTTP responses: the right status, and a message for the user."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import cherrypy
from girder.exceptions import AccessException, RestException, ValidationException
from pymongo.errors import (
    BulkWriteError,
    DocumentTooLarge,
    DuplicateKeyError,
    PyMongoError,
    WriteError,
)

from girder_dask.errors import GirderDaskError, GirderError
from girder_dask.plugin.store.access.dependencies import DependencyRefused
from girder_dask.plugin.store.database import UNSTORABLE, describe_error

__all__ = ["http_errors"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def http_errors() -> Iterator[None]:
    """Translate errors into those that Girder answers with the right status and message.

    Unexpected errors are logged, and the answer does not show them.
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
        logger.warning("Girder's database refused a request: %s", e)
        raise _of_database(e) from e
    except Exception as e:
        logger.exception("A route of girder_dask failed")
        uid = getattr(cherrypy.request, "girderRequestUid", "unknown")
        raise RestException(
            f"Girder could not answer this request. The cause is in its log, at request {uid}.",
            code=500,
        ) from e


def _status(error: GirderDaskError) -> int:
    # An error without a status means that the database did not answer.
    return (error.status or 503) if isinstance(error, GirderError) else 400


def _of_database(error: PyMongoError) -> RestException:
    if isinstance(error, (WriteError, BulkWriteError, DuplicateKeyError, DocumentTooLarge)):
        return RestException("Girder's database cannot store what the request holds.")
    return RestException("Girder's database does not answer. Send the request again.", code=503)
