"""The bodies of requests, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any

from girder.api import docs

__all__ = ["CLAIM_BODY", "IDS_BODY", "SUBMISSIONS_BODY", "UPDATES_BODY", "register"]

#: The names of the bodies in the document.
SUBMISSIONS_BODY = "DaskSubmissions"
IDS_BODY = "DaskIds"
UPDATES_BODY = "DaskUpdates"
CLAIM_BODY = "DaskClaim"

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_LIST = {"type": "array"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: Any) -> dict[str, Any]:
    return {**_LIST, "items": items}


_SUBMISSION = _object(
    ["version", "task", "payload"],
    version={"type": "integer", "enum": [1]},
    task={**_TEXT, "description": "package.module:function"},
    payload=_object(["b64"], b64={**_TEXT, "format": "byte"}),
    title=_TEXT,
    type=_TEXT,
    public={"type": "boolean"},
    args=_list({}),
    kwargs={"type": "object"},
    other_fields={"type": "object"},
    retries=_COUNT,
    timeout={"type": "number"},
    priority={"type": "integer"},
    resources={"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
    isolation={**_TEXT, "enum": ["thread", "process"]},
    dependencies=_list(_TEXT),
)
_UPDATE = _object(
    ["version", "id", "attempt", "sequence"],
    version={"type": "integer", "enum": [1]},
    id=_TEXT,
    attempt=_COUNT,
    sequence=_COUNT,
    statuses=_list(_list({"type": "number"})),
    log=_TEXT,
    progress={"type": "object"},
    error=_TEXT,
    waits=_TEXT,
)
_BODIES = {
    SUBMISSIONS_BODY: _object(
        ["submissions"],
        submissions=_list(_SUBMISSION),
        group={"type": "object"},
        key={**_TEXT, "pattern": "^[0-9a-f]{32}$"},
    ),
    IDS_BODY: _object(["ids"], ids=_list(_TEXT)),
    UPDATES_BODY: _object(
        ["scheduler", "updates"],
        scheduler=_TEXT,
        updates=_list(_UPDATE),
        received=_list(_list({})),
    ),
    CLAIM_BODY: _object(
        ["scheduler", "limit"],
        scheduler=_TEXT,
        limit={"type": "integer", "minimum": 1},
        after=_TEXT,
        lacking=_list(_list({})),
    ),
}


def register() -> None:
    """Add the bodies to the document."""
    for name, body in _BODIES.items():
        docs.addModel(name, body, resources="dask")
