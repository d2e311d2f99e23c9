"""Types of the JSON bodies of requests, and their descriptions in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from girder.api import docs
from msgspec import Meta, Struct

from girder_dask.plugin.retention_rules import RetentionRule
from girder_dask.protocol.messages import JobId, JobUpdate, Message, Submission
from girder_dask.protocol.wire_version import WIRE_VERSION

__all__ = [
    "ClaimBody",
    "JobIdsBody",
    "PruneBody",
    "SchedulerBody",
    "SubmissionsBody",
    "UpdatesBody",
    "parameter",
    "register",
]

_MAX_IDS = 100_000
# Characters of an address and the name of a host.
_MAX_PLACE = 1000

_SchedulerId = Annotated[str, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=0, lt=2**62)]


class SubmissionsBody(Struct):
    """The body of ``POST dask/job``. Its parts are checked one by one."""

    submissions: list[Any]
    group: Any = None
    key: Any = None
    parent: JobId | None = None
    offset: _Count = 0
    more: bool = False


class JobIdsBody(Struct):
    """The body of a request about many jobs."""

    ids: Annotated[list[str], Meta(max_length=_MAX_IDS)]


class UpdatesBody(Struct):
    """The body of ``POST dask/job/updates``. Its updates are checked one by one."""

    scheduler: _SchedulerId
    updates: list[Any]
    received: list[tuple[str, _Count]] = []


class LeaseRequest(Struct):
    """The part of a claim by which a scheduler renews the lease or takes it over."""

    place: Annotated[str, Meta(min_length=1, max_length=_MAX_PLACE)]
    host: Annotated[str, Meta(max_length=_MAX_PLACE)] = ""
    take_over: _Count | None = None


class ClaimBody(Struct):
    """The body of ``POST dask/job/claim``."""

    scheduler: _SchedulerId
    limit: Annotated[int, Meta(ge=1)]
    after: str | None = None
    lacking: list[tuple[JobId, _Count, _Count]] = []
    version: _Count = WIRE_VERSION
    lease: LeaseRequest | None = None


class SchedulerBody(Struct):
    """The body of a request of a scheduler about itself."""

    scheduler: _SchedulerId


class PruneBody(Struct):
    """The body of ``POST dask/prune``."""

    rule: RetentionRule
    after: JobId | None = None
    dry_run: bool = False


# The name of a body in the OpenAPI document, its form, and the items of its lists.
_DOCUMENTED: Mapping[type[Struct], tuple[str, str, Mapping[str, type[Message]]]] = {
    SubmissionsBody: (
        "DaskSubmissions",
        '{"submissions": [submission, …], "group": group or null, "key": …, "more": false}',
        {"submissions": Submission},
    ),
    JobIdsBody: ("DaskIds", '{"ids": [job id, …]}', {}),
    UpdatesBody: (
        "DaskUpdates",
        '{"scheduler": id, "updates": [update, …], "received": [[job id, attempt], …]}',
        {"updates": JobUpdate},
    ),
    ClaimBody: (
        "DaskClaim",
        (
            '{"scheduler": id, "limit": n, "after": id or null, '
            '"lacking": [[job id, attempt, n], …], '
            '"lease": {"place": address and name of host, "host": its id, "take_over": n or null}}'
        ),
        {},
    ),
    SchedulerBody: ("DaskScheduler", '{"scheduler": id}', {}),
    PruneBody: (
        "DaskPrune",
        '{"rule": {"delete": "logs", "days": 90}, "after": job id or null, "dry_run": false}',
        {},
    ),
}

# Fields of messages that a request does not set.
_NOT_OF_REQUESTS = frozenset({"api_url", "user"})
# What Swagger 2.0 lacks, or what the document does not need.
_NOT_IN_SWAGGER = frozenset({"title", "description", "default", "prefixItems", "propertyNames"})


def parameter(body: type[Struct]) -> dict[str, Any]:
    """Return the parameter that describes a body in the description of a route."""
    name, example, _ = _DOCUMENTED[body]
    return {
        "name": "body",
        "description": f"A JSON object: {example}.",
        "paramType": "body",
        "dataType": name,
        "required": False,
    }


def register() -> None:
    """Add the bodies to the OpenAPI document."""
    for body, (name, _, items) in _DOCUMENTED.items():
        model = _schema(body)
        for field, message in items.items():
            model["properties"][field]["items"] = _message_schema(message)
        docs.addModel(name, model, resources="dask")


def _message_schema(message: type[Message]) -> dict[str, Any]:
    schema = _schema(message)
    properties = {k: v for k, v in schema["properties"].items() if k not in _NOT_OF_REQUESTS}
    schema["properties"] = {
        "version": {"type": "integer", "enum": [WIRE_VERSION - 1, WIRE_VERSION, WIRE_VERSION + 1]},
        **properties,
    }
    schema["required"] = ["version", *schema["required"]]
    return schema


def _schema(kind: type[Any]) -> dict[str, Any]:
    types = msgspec.json.schema(kind)["$defs"]
    return _to_swagger(types[kind.__name__], types)


def _first_or_referred(schema: Mapping[str, Any], types: Mapping[str, Any]) -> Any:
    if "anyOf" in schema:
        return schema["anyOf"][0]
    return types[schema["$ref"].rpartition("/")[2]]


def _to_swagger(schema: Any, types: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a JSON schema of msgspec into the dialect of Swagger 2.0, which has no null.

    ``types`` are the definitions to which the schema refers, put in place of each reference.

    >>> _to_swagger({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, {})
    {'type': 'number', 'minimum': 0, 'exclusiveMinimum': True}
    """
    if not schema:  # anything
        return {}
    if "anyOf" in schema or "$ref" in schema:
        return _to_swagger(_first_or_referred(schema, types), types)
    if schema.get("contentEncoding") == "base64":  # as protocol.wire_json sends bytes
        data = {"b64": {"type": "string", "format": "byte"}}
        return {"type": "object", "required": ["b64"], "properties": data}
    shown: dict[str, Any] = {"items": {}} if schema.get("type") == "array" else {}
    for name, value in schema.items():
        if name == "properties":
            shown[name] = {field: _to_swagger(inner, types) for field, inner in value.items()}
        elif name in ("items", "additionalProperties"):
            shown[name] = _to_swagger(value, types)
        elif name.startswith("exclusive"):
            shown |= {name.removeprefix("exclusive").lower(): value, name: True}
        elif name == "pattern":
            shown[name] = value.replace(r"\Z", "$")
        elif name not in _NOT_IN_SWAGGER:
            shown[name] = value
    return shown
