"""A backup of a stack's database, taken while it is in use, and its restoration.

It stands for ``mongodump --oplog`` or a snapshot of the disk: all collections as they were at one
moment, with ``fsyncLock`` holding up writes meanwhile.
"""

from __future__ import annotations

from typing import Any

from pymongo import MongoClient

from girder_dask.testing.stack import TestStack
from tests.support.fault_site import FaultStack

__all__ = ["Backup"]


class Backup:
    """The documents of all collections of a stack at one moment.

    Parameters
    ----------
    stack
        The stack, which may be running.
    """

    def __init__(self, stack: TestStack) -> None:
        self._uri = stack.mongo
        client: Any = MongoClient(self._uri, tz_aware=True)
        database = client.get_default_database()
        client.admin.command("fsync", lock=True)
        try:
            self.collections = {
                name: list(database[name].find()) for name in database.list_collection_names()
            }
        finally:
            client.admin.command("fsyncUnlock")
            client.close()

    def restore(self, stack: FaultStack, *also_restarted: str) -> None:
        """Stop Girder, put the documents back, and start Girder.

        Parameters
        ----------
        stack
            The stack.
        also_restarted
            The names of other parts that are stopped and started with Girder.
        """
        for name in (*also_restarted, "girder"):
            stack.kill(name)
        client: Any = MongoClient(self._uri, tz_aware=True)
        database = client.get_default_database()
        for name in {*database.list_collection_names(), *self.collections}:
            database.drop_collection(name)
        for name, documents in self.collections.items():
            if documents:
                database[name].insert_many(documents)
        client.close()
        stack.restart("girder", *also_restarted)
