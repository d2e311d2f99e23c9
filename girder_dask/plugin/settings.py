"""The settings of the plugin, with their validators and defaults.

They are Girder settings: on the plugin's page, through ``PUT system/setting``, or in the
environment (``dask.scheduler_address`` is ``GIRDER_SETTING_DASK_SCHEDULER_ADDRESS``).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from bson import ObjectId
from girder.exceptions import ValidationException
from girder.models.group import Group
from girder.models.setting import Setting
from girder.settings import SettingKey
from girder.utility import setting_utilities

from girder_dask.plugin.retention_rules import MalformedRules, RetentionRule, read_rules

__all__ = [
    "ALLOW_TASKS",
    "API_URL",
    "DIRECT_PATH",
    "MAX_PRIORITY",
    "RETENTION",
    "SCHEDULER_ADDRESS",
    "SUBMITTERS",
    "allow_tasks",
    "api_url",
    "clear_cache",
    "default_api_url",
    "direct_path",
    "max_priority",
    "retention",
    "scheduler_addresses",
    "server_root",
    "submitters",
]

#: The address of the Dask scheduler, for example ``tcp://dask.example.org:8786``.
SCHEDULER_ADDRESS = "dask.scheduler_address"
#: Girder's REST API as the workers reach it, for workers without an address in their own
#: configuration or that of the scheduler. Empty: below ``core.server_root``.
API_URL = "dask.api_url"
#: Whether workers that share Girder's file system may read its files in place.
DIRECT_PATH = "dask.direct_path"
#: The id of the group whose members may run code of their own, from notebooks and scripts.
#: Empty: only site administrators may.
SUBMITTERS = "dask.submitters"
#: Which installed tasks any user may start from outside Girder: false, true, or a list of
#: patterns of their names, for example ``["my_package.*:segment"]``.
ALLOW_TASKS = "dask.allow_tasks"
#: The highest priority of calls of users who may not run code of their own.
MAX_PRIORITY = "dask.max_priority"
#: What is deleted of jobs that have ended, and when: a list of
#: :class:`~girder_dask.plugin.retention_rules.RetentionRule`.
RETENTION = "dask.retention"

#: Girder reads the database at each access, which would be most of the cost of a ``delay()``.
_CACHE_TTL_S = 1.0

_MAX_ABS_PRIORITY = 10**9

_SCHEMES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")
_cache: dict[str, tuple[float, Any]] = {}

logger = logging.getLogger(__name__)

_Validate = Callable[[dict[str, Any]], None]


def _validator(key: str) -> Callable[[_Validate], _Validate]:
    """Register the validator of a setting, which also refuses values that have no effect."""

    def register(validate: _Validate) -> _Validate:
        @functools.wraps(validate)
        def validate_effective(doc: dict[str, Any]) -> None:
            validate(doc)
            _refuse_overridden(doc, validate)

        setting_utilities.validator(key)(validate_effective)
        return validate

    return register


def _refuse_overridden(doc: dict[str, Any], validate: _Validate) -> None:
    """Refuse a value other than that of the environment, which Girder would go on using."""
    variable = f"GIRDER_SETTING_{doc['key'].replace('.', '_').upper()}"
    text = os.environ.get(variable)
    if text is None:
        return
    effective = {"key": doc["key"], "value": text}
    with contextlib.suppress(ValueError):
        effective["value"] = json.loads(text)
    with contextlib.suppress(ValidationException):  # Girder uses it all the same
        validate(effective)
    if effective["value"] != doc["value"]:
        raise ValidationException(
            f"The setting {doc['key']} is set in the environment of Girder ({variable}), so a "
            "saved value would have no effect. Change the variable and restart Girder, or remove "
            "it.",
            "value",
        )


@_validator(SCHEDULER_ADDRESS)
def _validate_scheduler_address(doc: dict[str, Any]) -> None:
    addresses = _split(_text(doc))
    for address in addresses:
        if not (address.startswith(_SCHEMES) and address.partition("://")[2]):
            raise ValidationException(
                "The scheduler's address must start with tcp://, tls:// or ucx://, "
                "for example tcp://dask.example.org:8786. If another scheduler stands by, give the "
                "addresses of both with a comma between them.",
                "value",
            )
    doc["value"] = ", ".join(addresses)


@_validator(API_URL)
def _validate_api_url(doc: dict[str, Any]) -> None:
    value = _text(doc)
    if value and not value.startswith(("http://", "https://")):
        raise ValidationException(
            "The API URL must start with http:// or https://, for example "
            "https://girder.example.org/api/v1.",
            "value",
        )
    doc["value"] = value.rstrip("/")


@_validator(DIRECT_PATH)
def _validate_direct_path(doc: dict[str, Any]) -> None:
    if not isinstance(doc["value"], bool):
        raise ValidationException("The direct path setting must be true or false.", "value")


@_validator(SUBMITTERS)
def _validate_submitters(doc: dict[str, Any]) -> None:
    value = _text({**doc, "value": str(doc["value"] or "")})
    if value and (not ObjectId.is_valid(value) or Group().load(value, force=True) is None):
        raise ValidationException(
            f"There is no group with the id {value!r}. Give the id of a group of this Girder, or "
            "nothing to let site administrators alone run code of their own.",
            "value",
        )
    doc["value"] = value


@_validator(ALLOW_TASKS)
def _validate_allow_tasks(doc: dict[str, Any]) -> None:
    value = doc["value"]
    if value is None or value == "":
        doc["value"] = False
    elif not isinstance(value, bool) and not _are_patterns(value):
        raise ValidationException(
            "The tasks that any user may start are false (none), true (all), or a list of patterns "
            'of their names, for example ["my_package.*:segment"].',
            "value",
        )


@_validator(MAX_PRIORITY)
def _validate_max_priority(doc: dict[str, Any]) -> None:
    given = doc["value"]
    value = 0 if given is None or given == "" else _priority(given)
    if value is None:
        raise ValidationException(
            "The highest priority of users who may not run code of their own is a whole number "
            f"between -{_MAX_ABS_PRIORITY:,} and {_MAX_ABS_PRIORITY:,}.",
            "value",
        )
    doc["value"] = value


@_validator(RETENTION)
def _validate_retention(doc: dict[str, Any]) -> None:
    if doc["value"] is None or doc["value"] == "":
        doc["value"] = []
    try:
        read_rules(doc["value"])
    except MalformedRules as e:
        raise ValidationException(
            f"The retention of jobs cannot be read: {e}. It is a list of rules such as "
            '{"delete": "logs", "days": 90, "states": ["SUCCESS"]}.',
            "value",
        ) from e


def _priority(value: Any) -> int | None:
    """Return a priority, which is text in the environment, or None if it is malformed."""
    try:
        whole = None if isinstance(value, (bool, float)) else int(value)
    except (TypeError, ValueError):
        return None
    return whole if whole is not None and abs(whole) <= _MAX_ABS_PRIORITY else None


def _are_patterns(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)


@setting_utilities.default(SUBMITTERS)
def _default_submitters() -> str:
    return ""


@setting_utilities.default(ALLOW_TASKS)
def _default_allow_tasks() -> bool:
    return False


@setting_utilities.default(MAX_PRIORITY)
def _default_max_priority() -> int:
    return 0


@setting_utilities.default(RETENTION)
def _default_retention() -> list[Any]:
    return []


@setting_utilities.default(SCHEDULER_ADDRESS)
def _default_scheduler_address() -> str:
    return ""


@setting_utilities.default(API_URL)
def _default_api_url() -> str:
    return ""


@setting_utilities.default(DIRECT_PATH)
def _default_direct_path() -> bool:
    return False


def _text(doc: dict[str, Any]) -> str:
    if doc["value"] is None:
        doc["value"] = ""
    if not isinstance(doc["value"], str):
        raise ValidationException(f"The setting {doc['key']} must be text.", "value")
    doc["value"] = doc["value"].strip()
    return str(doc["value"])


def _get(key: str) -> Any:
    now = time.monotonic()
    known = _cache.get(key)
    if known is not None and now - known[0] < _CACHE_TTL_S:
        return known[1]
    value = Setting().get(key)
    _cache[key] = (now, value)
    return value


def clear_cache(_event: Any = None) -> None:
    """Clear the cached settings. Bound to the event of a saved setting."""
    _cache.clear()


def _known_text(key: str) -> str | None:
    value = _get(key)
    # Values of the environment and the database are not validated.
    return value if isinstance(value, str) and value else None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def scheduler_addresses() -> list[str]:
    """Return the addresses of the Dask schedulers, of which one leads."""
    return _split(_known_text(SCHEDULER_ADDRESS) or "")


def api_url() -> str | None:
    """Return Girder's REST API as the workers reach it, or None if it is not set."""
    return _known_text(API_URL)


def direct_path() -> bool:
    """Return True if workers may read Girder's files in place."""
    return bool(_get(DIRECT_PATH))


def submitters() -> ObjectId | None:
    """Return the id of the group that may run code of its own, or None if none is set."""
    value = str(_get(SUBMITTERS) or "")
    return ObjectId(value) if value and ObjectId.is_valid(value) else None


def allow_tasks() -> bool | list[str]:
    """Return which installed tasks any user may start: all, none, or a list of patterns."""
    value = _get(ALLOW_TASKS)
    if isinstance(value, bool):
        return value
    # Values of the environment are not validated.
    return value if _are_patterns(value) else False


def max_priority() -> int:
    """Return the highest priority of calls of users who may not run code of their own."""
    return _priority(_get(MAX_PRIORITY)) or 0


def retention() -> list[RetentionRule]:
    """Return the rules of retention, none if they are malformed, as the environment may be."""
    try:
        return read_rules(_get(RETENTION))
    except MalformedRules as e:
        logger.error("Nothing is deleted, since %s cannot be read: %s", RETENTION, e)
        return []


def server_root() -> str | None:
    """Return Girder's setting ``core.server_root``, or None if it is not set."""
    return _known_text(SettingKey.SERVER_ROOT)


def default_api_url() -> str | None:
    """Return Girder's REST API according to its settings, or None if neither of them is set.

    Tokens are sent there, so no request can change it.
    """
    root = server_root()
    return api_url() or (f"{root.rstrip('/')}/api/v1" if root else None)
