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
import reprlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from girder_dask.celery import shared_values
from girder_dask.celery.shared_values import as_text
from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import FOLLOWING_CALLS, CeleryMessage, find_tokens

__all__ = [
    "HOOKS",
    "TRANSFORMS",
    "arguments",
    "check",
    "count_containers",
    "find_code",
    "has_reference",
    "has_references",
    "hooks",
    "load",
    "message_text",
    "objects",
    "tokens",
]

#: The header with the transforms of the result, each in the form of jsonpickle.
HOOKS = "girder_result_hooks"

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
_OBJECT = "py/object"
# The prefix of keys that jsonpickle opens like values, and of those that are no text.
_JSON_KEY = "json://"
_MAX_KEY_CHARS = 1_000

# A reference of jsonpickle by a number.
_REFERENCE = '"py/id"'

_MAX_LEVELS = 100
# The most characters of objects in a message that are compared with known ones.
_MAX_COMPARED_CHARS = 4 * 1024**2
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
    text = _text(message)
    try:
        body = None if text is None else shared_values.loads(text)
    except (ValueError, RecursionError, ArgumentError):
        return None
    is_complete = isinstance(body, list) and list(map(type, body)) == [list, dict, dict]
    return body if is_complete or _is_with_tuple(body) else None


def _text(message: CeleryMessage) -> str | None:
    if message.content_type != _JSON or message.body_encoding not in (None, _BASE64):
        return None
    if message.body_encoding is None:
        return message.body
    try:
        return base64.b64decode(message.body).decode()
    except (ValueError, binascii.Error):
        return None


def count_containers(message: CeleryMessage) -> int:
    """Return the greatest possible number of lists and mappings in the body of a message."""
    text = _text(message) or ""
    return text.count("[") + text.count("{")


def _is_with_tuple(body: Any) -> bool:
    """Return True for a body whose arguments are a tuple, as jsonpickle writes it."""
    if isinstance(body, dict) and list(body) == ["py/tuple"]:
        body = body["py/tuple"]
    return isinstance(body, list) and len(body) == 3


def arguments(message: CeleryMessage) -> Any:
    """Return the arguments and the keyword arguments of a message as JSON, None if it is not.

    The arguments are a list, not a tuple.
    """
    body: Any = load(message)
    if isinstance(body, dict):
        body = body["py/tuple"]
    if body is None:
        return None
    args, kwargs, _ = body
    if isinstance(args, dict) and list(args) == ["py/tuple"]:
        # Not its inner value if that is no list: jsonpickle makes a tuple of the keys of a mapping.
        args = args["py/tuple"] if isinstance(args["py/tuple"], list) else args
    return [args, kwargs]


def message_text(message: CeleryMessage) -> str:
    """Return the task and the arguments of a message as text, the same for the same call."""
    return as_text([message.task, arguments(message) or message.body])


def hooks(message: CeleryMessage) -> list[Any]:
    """Return the transforms of the result in the headers of a message, as JSON.

    Raises
    ------
    ArgumentError
        If they are no list, or refer to something that they do not have.
    """
    given = message.headers.get(HOOKS)
    if not isinstance(given, (list, tuple, type(None))):
        raise ArgumentError(f"{HOOKS} of the message for {message.task} is no list.")
    return [shared_values.resolve(each) for each in given or ()]


def check(
    message: CeleryMessage, known: Collection[str] = (), known_hooks: Collection[str] = ()
) -> list[Any]:
    """Check that a message holds data alone, and return its body as JSON.

    Objects that are ``known``, in the form of :func:`.shared_values.as_text`, may be in the body as
    well, and those in ``known_hooks`` among the transforms of the result.

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
    rest = {name: each for name, each in message.headers.items() if name != HOOKS}
    reason = (
        _unknown_parts(body)
        or find_code(body, "body", known)
        or find_code(rest, "headers")
        or find_code(hooks(message), f"headers['{HOOKS}']", known_hooks)
    )
    if reason is not None:
        raise ArgumentError(
            f"The message for {message.task} may run code when it is opened: {reason}. A job may "
            "send plain values and girder_worker's transforms. For more, its owner must be in the "
            "group of the setting dask.submitters."
        )
    return body


def _unknown_parts(body: Any) -> str | None:
    """Return what is embedded in a body besides the calls that follow, or None."""
    _, _, embed = body["py/tuple"] if isinstance(body, dict) else body
    unknown = sorted(embed.keys() - FOLLOWING_CALLS) if isinstance(embed, dict) else ["no mapping"]
    return f"body[2] has {', '.join(unknown)[:200]}" if unknown and embed is not None else None


def find_code(value: Any, path: str, known: Collection[str] = ()) -> str | None:
    """Return the place of something in JSON that jsonpickle would open by running code, or None.

    >>> find_code({"a": [{"py/tuple": [1, 2]}]}, "body")
    >>> find_code({"a": [{"py/reduce": [{"py/function": "os.system"}]}]}, "body")
    "body['a'][0] has py/reduce"
    """
    left: list[tuple[_Place, Any, int]] = [(None, value, 0)]
    seen: set[int] = set()
    compared = 0
    while left:
        place, found, level = left.pop()
        if level > _MAX_LEVELS:
            return f"{_named(path, place):.200} is nested deeper than {_MAX_LEVELS} levels"
        if id(found) in seen or not isinstance(found, (Mapping, list, tuple)):
            continue
        seen.add(id(found))
        if isinstance(found, Mapping):
            reason = _code_in_keys(found)
            if reason is not None and known and compared <= _MAX_COMPARED_CHARS:
                text = as_text(found)
                compared += len(text)
                if text in known:
                    continue
            if reason is not None:
                return f"{_named(path, place):.500} has {reason}"
        # In the order of the text, in which a shared value is first where it is written.
        inside = [
            ((key, place), inner, level + 1)
            for key, inner in _parts(found)
            if inner and isinstance(inner, (Mapping, list, tuple))
        ]
        left += reversed(inside)
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
            if not _is_plain_key(key[len(_JSON_KEY) :]):
                return "a key that is not plain"
        elif key == _OBJECT:
            reason = _code_in_object(value)
            if reason is not None:
                return reason
        elif key.startswith(_PREFIX) and key not in _CONTAINERS:
            return f"{key:.50}"
    return None


def _code_in_object(value: Mapping[str, Any]) -> str | None:
    """Return why an object of jsonpickle is no transform with data alone, or None."""
    name = value[_OBJECT]
    known = TRANSFORMS.get(name) if isinstance(name, str) else None
    if known is None:
        return f"an object of {reprlib.repr(name):.100}"
    if unknown := value.keys() - known - {_OBJECT}:
        return f"an object of {name!r} with {', '.join(sorted(unknown))[:100]}"
    for attribute in _ID_ATTRIBUTES & value.keys():
        given = value[attribute]
        if not (isinstance(given, str) and _ID.fullmatch(given)):
            what = reprlib.repr(given)
            return f"an object of {name!r} whose {attribute} is no id: {what:.100}"
    return None


def _is_plain_key(text: str) -> bool:
    """Return True for the text of a key that is a number, a truth value, None, text or a tuple."""
    try:
        left = [json.loads(text)] if len(text) <= _MAX_KEY_CHARS else [[]]
    except (ValueError, RecursionError):
        return False
    if isinstance(left[0], str) and left[0].startswith(_PREFIX):
        return False  # a tag, if the value were opened once more
    while left:
        found = left.pop()
        if isinstance(found, dict) and list(found) == ["py/tuple"]:
            inner = found["py/tuple"]
            left += inner if isinstance(inner, list) else [[]]
        elif isinstance(found, (dict, list)):
            return False
    return True


def objects(value: Any) -> Iterator[str]:
    """Yield the objects of jsonpickle in JSON that :func:`find_code` finds, as text.

    Those that refer to others by a number are left out: elsewhere they would refer to something
    else.
    """
    left = [value]
    seen: set[int] = set()
    while left:
        found = left.pop()
        if id(found) in seen or not isinstance(found, (Mapping, list, tuple)):
            continue
        seen.add(id(found))
        if isinstance(found, Mapping) and _code_in_keys(found):
            text = as_text(found)
            if not has_reference(text):
                yield text
        left += [inner for _, inner in _parts(found)]


def has_references(message: CeleryMessage) -> bool:
    """Return True if a message may have references of jsonpickle by numbers."""
    return has_reference(_text(message) or "")


def has_reference(text: str) -> bool:
    """Return True if a text of JSON has a reference of jsonpickle by a number."""
    return _REFERENCE in text


def tokens(message: CeleryMessage) -> list[str]:
    """Return what has the form of a token of Girder in a message, up to a number.

    Only what has that form is blanked in the output of a run: other runs of the worker share the
    list, and their output must not lose ordinary words.
    """
    found: dict[str, None] = {}
    left: list[Any] = [load(message), message.headers]
    seen: set[int] = set()
    while left and len(found) < _MAX_TOKENS:
        value = left.pop()
        if isinstance(value, (Mapping, list)) and id(value) not in seen:
            seen.add(id(value))
            left += [inner for _, inner in _parts(value)]
        elif isinstance(value, str):
            found |= dict.fromkeys(find_tokens(value))
    return list(found)[:_MAX_TOKENS]
