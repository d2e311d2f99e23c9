"""Girder's database: what is said of one that does not answer, and how documents get there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bson.errors import BSONError
from pymongo.errors import BulkWriteError, ConnectionFailure, DuplicateKeyError, PyMongoError

from girder_dask.errors import GirderError

__all__ = ["UNFIT", "explained", "insert", "reason"]

#: What the driver raises for a document that cannot be stored, before it is sent.
UNFIT = (BSONError, OverflowError, UnicodeError, RecursionError)


def reason(error: Exception) -> str:
    """Return what an error of the database says, without what the driver knows of servers.

    >>> from pymongo.errors import ServerSelectionTimeoutError
    >>> reason(ServerSelectionTimeoutError('db:27017: refused, Timeout: 20s, Topology: …'))
    'db:27017: refused'
    """
    if isinstance(error, (BulkWriteError, DuplicateKeyError)):
        # What it says holds the document.
        return "it refused a document, or has one of the same key"
    text = str(error)
    if isinstance(error, ConnectionFailure):
        for more in (" (configured timeouts", ", Timeout: "):
            text = text.partition(more)[0]
    return text.rstrip(".")


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise GirderError in place of what the database raises.

    Parameters
    ----------
    what
        What does not work because of it, as the beginning of a sentence.
    """
    try:
        yield
    except PyMongoError as e:
        raise GirderError(f"{what}: {reason(e)}.") from e


def insert(collection: Any, documents: Sequence[Mapping[str, Any]]) -> None:
    """Insert documents of one collection, all at once. One alone takes half as long that way."""
    if len(documents) == 1:
        collection.insert_one(documents[0])
    elif documents:
        collection.insert_many(documents, ordered=False)
