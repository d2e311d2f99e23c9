"""The tokens that girder_worker's transforms make for themselves, which jobs do not need."""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import datetime, timedelta, timezone

from girder.api.rest import getCurrentToken
from girder.constants import TokenScope
from girder.models.token import Token

__all__ = ["delete_spent"]

# How long ago a transform in a message may have been made.
_MAX_AGE = timedelta(hours=1)


def delete_spent(token_ids: Collection[str]) -> None:
    """Delete those of the tokens that transforms have made, since no job uses them.

    Such a token has exactly the scopes that transforms ask for. Others, such as that of the
    request or one that code has given to a transform, are kept.
    """
    if not token_ids:
        return
    current = getCurrentToken()
    ids = set(token_ids) - {current["_id"] if current else None}
    scopes = _scopes()
    Token().removeWithQuery(
        {
            "_id": {"$in": list(ids)},
            "scope": {"$all": scopes, "$size": len(scopes)},
            "created": {"$gt": datetime.now(timezone.utc) - _MAX_AGE},
            "apiKeyId": {"$exists": False},
        }
    )


def _scopes() -> list[str]:
    """Return the scopes of these tokens, as ``girder_worker.utils.transforms`` chooses them."""
    more = os.environ.get("GIRDER_WORKER_JOB_GC_SCOPE")
    named = {part.strip("\"['] ") for part in more.split(",")} if more is not None else set()
    return sorted(named | {TokenScope.DATA_READ, TokenScope.DATA_WRITE})
