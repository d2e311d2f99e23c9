"""The JSON in messages of Celery, and the check that it is data.

girder_worker encodes the body of a message with jsonpickle. Opening that can import any module and
call any function, so a message of a job whose owner may not run code of their own holds JSON, and
of jsonpickle only containers and girder_worker's transforms.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import CeleryMessage, find_tokens

__all__ = [
    "TRANSFORMS",
    "arguments",
    "as_text",
    "check",
    "load",
    "message_text",
    "objects",
    "tokens",
]

_IO = "girder_worker.utils.transforms.girder_io"

#: The classes whose instances a message may hold, whoever sends it, with the attributes that it may
#: set. Others of their attributes name files on the worker that they delete.
TRANSFORMS: Mapping[str, frozenset[str]] = {
    "girder_client.GirderClient": frozenset(),  # it is restored as the client of the job
    "girder_worker.utils.transforms.common.TemporaryDirectory": frozenset(),
    f"{_IO}.GirderFileId": frozenset({"gc", "file_id"}),
    f"{_IO}.GirderItemId": frozenset({"gc", "item_id"}),
    f"{_IO}.GirderItemMetadata": frozenset({"gc", "item_id"}),
}

# Attributes that become parts of paths, in a directory that the transform deletes.
_ID_ATTRIBUTES = frozenset({"file_id", "item_id"})
_ID = re.compile(r"[0-9a-f]{24}")

# Tags of jsonpickle that stand for containers of plain values, and for what was there before.
_CONTAINERS = frozenset({"py/tuple", "py/set", "py/id", "py/b64"})
_PREFIX = "py/"
# The prefix of keys that jsonpickle opens like values.
_JSON_KEY = "json://"


_REFERENCE = '"py/id"'

_MAX_LEVELS = 100
# A call has a token or two. Each costs time in every line that a run prints.
_MAX_TOKENS = 100
_JSON = "application/json"
_BASE64 = "base64"
# A place in JSON: the keys and indices that lead there, the last one first.
_Place = tuple[Any, Any] | None


def load(message: CeleryMessage) -> list[Any] | None:
    """Return the body of a message as JSON: arguments, keyword arguments, what is embedded.

    None if it is not JSON or not of protocol 2 of Celery. Nothing of jsonpickle is opened.
    """
    if message.content_type != _JSON or message.body_encoding not in (None, _BASE64):
        return None
    try:
        is_encoded = message.body_encoding == _BASE64
        body = json.loads(base64.b64decode(message.body) if is_encoded else message.body)
    except (ValueError, binascii.Error, RecursionError):
        return None
    is_complete = isinstance(body, list) and list(map(type, body)) == [list, dict, dict]
    return body if is_complete or _is_with_tuple(body) else None


def _is_with_tuple(body: Any) -> bool:
    """Return True for a body whose arguments are a tuple, as jsonpickle writes it."""
    if isinstance(body, dict) and list(body) == ["py/tuple"]:
        body = body["py/tuple"]
    return isinstance(body, list) and len(body) == 3


def arguments(message: CeleryMessage) -> Any:
    """Return the arguments and the keyword arguments of a message as JSON, None if it is not.

    Tuples are lists.
    """
    body = load(message)
    try:
        return None if body is None else _plain_lists(body)[:2]
    except RecursionError:
        return None


def message_text(message: CeleryMessage) -> str:
    """Return the task and the arguments of a message as text, the same for the same call."""
    return as_text([message.task, arguments(message) or message.body])


def _plain_lists(value: Any) -> Any:
    """Return JSON with lists in place of jsonpickle's tuples.

    >>> _plain_lists({"a": {"py/tuple": [1, {"py/tuple": []}]}})
    {'a': [1, []]}
    """
    if isinstance(value, list):
        return [_plain_lists(each) for each in value]
    if isinstance(value, dict):
        if list(value) == ["py/tuple"] and isinstance(value["py/tuple"], list):
            return _plain_lists(value["py/tuple"])
        return {key: _plain_lists(each) for key, each in value.items()}
    return value


def check(message: CeleryMessage, known: Collection[str] = ()) -> list[Any]:
    """Check that a message holds data alone, and return its body as JSON.

    Objects that are ``known``, in the form of :func:`as_text`, may be in it as well.

    Whoever opens the message must open this JSON, not the text: two parsers of hostile text may
    find different things in it.

    Raises
    ------
    ArgumentError
        If opening it could run code. The message names the place.
    """
    body = load(message)
    if body is None:
        raise ArgumentError(
            f"The message for {message.task} is of type {message.content_type!r:.100}, or not of "
            "protocol 2 of Celery. A job may send JSON alone, as girder_worker's tasks do."
        )
    reason = find_code(body, "body", known) or find_code(message.headers, "headers", known)
    if reason is not None:
        raise ArgumentError(
            f"The message for {message.task} may run code when it is opened: {reason}. A job may "
            "send plain values and girder_worker's transforms. For more, its owner must be in the "
            "group of the setting dask.submitters."
        )
    return body


def find_code(value: Any, path: str, known: Collection[str] = ()) -> str | None:
    """Return the place of something in JSON that jsonpickle would open by running code, or None.

    >>> find_code({"a": [{"py/tuple": [1, 2]}]}, "body")
    >>> find_code({"a": [{"py/reduce": [{"py/function": "os.system"}]}]}, "body")
    "body['a'][0] has py/reduce"
    """
    left: list[tuple[_Place, Any, int]] = [(None, value, 0)]
    while left:
        place, found, level = left.pop()
        if level > _MAX_LEVELS:
            return f"{_named(path, place):.200} is nested deeper than {_MAX_LEVELS} levels"
        if isinstance(found, Mapping):
            reason = _code_in_keys(found)
            if reason is not None and known and as_text(found) in known:
                continue
            if reason is not None:
                return f"{_named(path, place):.500} has {reason}"
        left += [
            ((key, place), inner, level + 1)
            for key, inner in _parts(found)
            if isinstance(inner, (Mapping, list, tuple))
        ]
    return None


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    return iter(value.items()) if isinstance(value, Mapping) else enumerate(value)


def _named(path: str, place: _Place) -> str:
    """Return the name of a place. It is made for errors alone: there are as many as values."""
    keys = []
    while place is not None:
        key, place = place
        keys.append(f"[{key!r:.50}]" if isinstance(key, str) else f"[{key}]")
    return path + "".join(reversed(keys))


def _code_in_keys(value: Mapping[Any, Any]) -> str | None:
    for key in value:
        if not isinstance(key, str):
            return "a key that is not text"
        if key.startswith(_JSON_KEY):
            return "a key that is not plain text"
        if not key.startswith(_PREFIX) or key in _CONTAINERS:
            continue
        if key != "py/object":
            return f"{key:.50}"
        known = TRANSFORMS.get(str(value[key]))
        if known is None:
            return f"an object of {value[key]!r:.100}"
        if unknown := value.keys() - known - {key}:
            return f"an object of {value[key]!r} with {', '.join(sorted(unknown))[:100]}"
        for name in _ID_ATTRIBUTES & value.keys():
            if not (isinstance(value[name], str) and _ID.fullmatch(value[name])):
                return f"an object of {value[key]!r} whose {name} is no id: {value[name]!r:.100}"
    return None


def objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of jsonpickle in JSON that :func:`find_code` finds.

    Those that refer to others by a number are left out: elsewhere they would refer to something
    else.
    """
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, Mapping) and _code_in_keys(found) and _REFERENCE not in as_text(found):
            yield found
        if isinstance(found, (Mapping, list, tuple)):
            left += [inner for _, inner in _parts(found)]


def as_text(value: Any) -> str:
    """Return JSON as text by which it is compared, without the differences between encoders."""
    return json.dumps(_plain_lists(value), sort_keys=True)


def tokens(message: CeleryMessage) -> list[str]:
    """Return what has the form of a token of Girder in a message, up to a number.

    Only what has that form is blanked in the output of a run: other runs of the worker share the
    list, and their output must not lose ordinary words.
    """
    found: dict[str, None] = {}
    left: list[Any] = [load(message), message.headers]
    while left and len(found) < _MAX_TOKENS:
        value = left.pop()
        if isinstance(value, (Mapping, list)):
            left += [inner for _, inner in _parts(value)]
        elif isinstance(value, str):
            found |= dict.fromkeys(find_tokens(value))
    return list(found)[:_MAX_TOKENS]
