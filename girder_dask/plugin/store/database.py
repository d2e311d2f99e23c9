"""Access to Girder's database: descriptions of errors, inserts and ids."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bson import ObjectId
from bson.errors import BSONError
from pymongo.errors import BulkWriteError, ConnectionFailure, DuplicateKeyError, PyMongoError

from girder_dask.errors import GirderError

__all__ = ["UNSTORABLE", "batches", "database_errors", "describe_error", "insert", "to_object_id"]

_T = TypeVar("_T")

#: Errors that the driver raises, before it sends, for documents that cannot be stored.
UNSTORABLE = (BSONError, OverflowError, UnicodeError, RecursionError)


def describe_error(error: Exception) -> str:
    """Return the message of a database error, without the driver's description of servers.

    >>> from pymongo.errors import ServerSelectionTimeoutError
    >>> describe_error(ServerSelectionTimeoutError('db:27017: refused, Timeout: 20s, Topology: …'))
    'db:27017: refused'
    """
    if isinstance(error, (BulkWriteError, DuplicateKeyError)):
        # The message contains the document.
        return "it refused a document, or has one of the same key"
    if isinstance(error, UNSTORABLE):
        return _unfit(error)
    text = str(error)
    if isinstance(error, ConnectionFailure):
        for more in (" (configured timeouts", ", Timeout: "):
            text = text.partition(more)[0]
    return text.rstrip(".")


def _unfit(error: Exception) -> str:
    """Return why a document cannot be stored, without the driver's own terms."""
    if isinstance(error, UnicodeError):
        return "it holds text that is not Unicode, such as half of a surrogate pair"
    if isinstance(error, OverflowError):
        return "it holds a whole number of more than 64 bits"
    if isinstance(error, RecursionError):
        return "it holds too many lists and mappings within each other"
    return "it holds a key or a value that the database does not store"


@contextlib.contextmanager
def database_errors(what: str) -> Iterator[None]:
    """Turn errors of the database into GirderError.

    Parameters
    ----------
    what
        What has failed because of the error, as the beginning of a sentence.
    """
    try:
        yield
    except PyMongoError as e:
        raise GirderError(f"{what}: {describe_error(e)}.") from e


def to_object_id(value: Any) -> ObjectId | None:
    """Return the id that a value is or spells, None if it is neither.

    >>> to_object_id("5f3c") is None
    True
    """
    is_id = isinstance(value, (str, ObjectId)) and ObjectId.is_valid(value)
    return ObjectId(value) if is_id else None


def batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield items in lists of at most ``size``."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def insert(collection: Any, documents: Sequence[Mapping[str, Any]]) -> None:
    """Insert documents into a collection, all at once. ``insert_one`` is faster for one."""
    if len(documents) == 1:
        collection.insert_one(documents[0])
    elif documents:
        collection.insert_many(documents, ordered=False)
