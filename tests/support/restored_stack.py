"""A stack that starts with the database dump of ``make_upgrade_dump.py``."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from bson import json_util
from pymongo import MongoClient

from girder_dask.standalone.stack_part import Part
from girder_dask.testing.stack import TestStack

__all__ = ["RestoredStack", "load_dump"]


def load_dump(path: Path) -> dict[str, Any]:
    """Return the content of a dump."""
    return dict(json.loads(gzip.decompress(path.read_bytes())))


class RestoredStack(TestStack):
    """A stack that starts with the jobs, users and files of another one."""

    __test__ = False

    def __init__(self, directory: Path, dump: dict[str, Any], **options: Any) -> None:
        super().__init__(directory, **options)
        self._dump = dump
        state = {k: v for k, v in dump["state"].items() if k in ("login", "password", "api_key")}
        directory.mkdir()
        self._directory.save_state(state)
        self._restore_files()

    def _launch(self, parts: Sequence[Part]) -> None:
        if not self.parts:  # the database, before the Girder that uses it
            storage = [part for part in parts if part.name in ("mongod", "redis")]
            super()._launch(storage)
            self._restore_database()
            parts = [part for part in parts if part not in storage]
        super()._launch(parts)

    def _restore_files(self) -> None:
        for name, content in self._dump["files"].items():
            path = self._directory.part("assetstore") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(content))

    def _restore_database(self) -> None:
        client: Any = MongoClient(self.mongo)
        database = client.get_default_database()
        age = datetime.now(timezone.utc) - datetime.fromisoformat(self._dump["recorded"])
        for name, documents in self._dump["collections"].items():
            database.drop_collection(name)
            restored = self._adapted(json_util.loads(json.dumps(documents)), age)
            if restored:
                database[name].insert_many(restored)
        client.close()

    def _adapted(self, value: Any, age: timedelta) -> Any:
        """Return a value with its times shifted to the present, and with the path of the files."""
        if isinstance(value, dict):
            return {key: self._adapted(inner, age) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._adapted(inner, age) for inner in value]
        if isinstance(value, datetime):
            return value + age
        if value == self._dump["assetstore"]:
            return str(self._directory.part("assetstore"))
        return value
