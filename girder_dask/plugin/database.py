"""What is said of a database that does not answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pymongo.errors import ConnectionFailure, PyMongoError

from girder_dask.errors import GirderError

__all__ = ["explained", "reason"]


def reason(error: Exception) -> str:
    """Return what an error of the database says, without what the driver knows of servers.

    >>> from pymongo.errors import ServerSelectionTimeoutError
    >>> reason(ServerSelectionTimeoutError('db:27017: refused, Timeout: 20s, Topology: …'))
    'db:27017: refused'
    """
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
