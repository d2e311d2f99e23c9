"""The id of this Girder, by which it is told from others."""

from __future__ import annotations

import functools
import uuid

from girder.models.setting import Setting
from pymongo import ReturnDocument

__all__ = ["site_id"]

# Not a setting that can be saved: there is no validator for it.
_KEY = "dask.site_id"


@functools.cache
def site_id() -> str:
    """Return the id of this Girder, which its database keeps. It is no secret."""
    found = Setting().collection.find_one_and_update(
        {"key": _KEY},
        {"$setOnInsert": {"value": uuid.uuid4().hex}},
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    return str(found["value"])
