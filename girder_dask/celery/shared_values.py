"""References in JSON to a value that occurs in it more than once.

jsonpickle refers to such a value by its number among all values before it. What a number stands for
depends on whatever else is in the message, and on the classes of the objects there. So messages
name the value by a label at its first place, and all who read them resolve the labels here.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any

from girder_dask.errors import ArgumentError

__all__ = [
    "SAME",
    "SHARED",
    "VALUE",
    "as_text",
    "loads",
    "plain_lists",
    "resolve",
    "shared_in",
    "size_of",
]

#: The tag of the first place of a value, with its label, and the key of the value itself.
SHARED = "py/dask-shared"
VALUE = "value"
#: The tag of any other place, with the same label.
SAME = "py/dask-same"

# Whatever a text has that contains a tag, in one of the ways that JSON can be written.
_SIGNS = ("/dask-", "\\u", "\\/")


def loads(text: str | bytes) -> Any:
    """Return JSON with its references resolved: a shared value is one object.

    Raises
    ------
    ValueError
        If it is no JSON.
    ArgumentError
        If a reference leads nowhere.
    """
    if isinstance(text, (bytes, bytearray)):
        text = text.decode()
    value = json.loads(text)
    return resolve(value) if any(sign in text for sign in _SIGNS) else value


def resolve(value: Any) -> Any:
    """Return JSON with one object in each place of a shared value.

    A reference leads to what is complete before it, so that nothing contains itself.

    Raises
    ------
    ArgumentError
        If it does not, if a label stands for two values, or if a tag is beside other keys.

    Examples
    --------
    >>> first, second = resolve([{"py/dask-shared": 0, "value": [1]}, {"py/dask-same": 0}])
    >>> first is second, first
    (True, [1])
    """
    known: dict[int, Any] = {}

    def resolved(found: Any) -> Any:
        if isinstance(found, (list, tuple)):
            return [resolved(each) for each in found]
        if not isinstance(found, dict):
            return found
        if SAME in found:
            return _known(found)
        if SHARED not in found:
            return {key: resolved(each) for key, each in found.items()}
        label = found[SHARED]
        if found.keys() != {SHARED, VALUE} or type(label) is not int or label in known:
            raise _unclear(found)
        inner = resolved(found[VALUE])
        if label in known or not isinstance(inner, (list, dict)):
            raise _unclear(found)
        known[label] = inner
        return inner

    def _known(found: Any) -> Any:
        label = found[SAME]
        if len(found) != 1 or type(label) is not int or label not in known:
            raise _unclear(found)
        return known[label]

    return resolved(value)


def _unclear(found: Any) -> ArgumentError:
    return ArgumentError(
        "A reference in the message does not lead to one value before it: "
        f"{reprlib.repr(found)[:200]}"
    )


def shared_in(value: Any) -> dict[int, Any]:
    """Return the objects of JSON that are in more than one place, by their ids."""
    seen: set[int] = set()
    shared: dict[int, Any] = {}
    left = [value]
    while left:
        found = left.pop()
        if not isinstance(found, (list, dict)):
            continue
        if id(found) in seen:
            shared[id(found)] = found
            continue
        seen.add(id(found))
        left.extend(found.values() if isinstance(found, dict) else found)
    return shared


def size_of(value: Any, limit: int, *, of_container: int = 2) -> int:
    """Return the least number of characters that :func:`as_text` makes of JSON.

    The walk ends beyond a limit, so that it costs no more than that.

    Parameters
    ----------
    of_container
        What a list or a mapping counts besides what is in it.

    Examples
    --------
    >>> size_of([1, "text", {"a": []}], 100), size_of(["text"] * 100, 10)
    (14, 14)
    """
    size = 0
    seen: set[int] = set()
    left = [value]
    while left and size <= limit:
        found = left.pop()
        if isinstance(found, str):
            size += len(found) + 2
        elif not isinstance(found, (list, tuple, dict)):
            size += 1
        elif id(found) not in seen:
            seen.add(id(found))
            if not isinstance(found, dict):
                size += of_container
                left.extend(found[: limit + 1])
            elif list(found) == ["py/tuple"]:
                left.append(found["py/tuple"])
            else:
                size += of_container + sum(map(len, found))
                left.extend(found.values())
    return size


def as_text(value: Any) -> str:
    """Return JSON as text by which it is compared, without the differences between encoders.

    Tuples of jsonpickle are lists, and keys and the members of sets are sorted. What is shared
    within the value is labelled in that order, wherever else it is shared.
    """
    shared: dict[int, Any] = {}
    plain = plain_lists(value, shared)
    return json.dumps(_labelled(plain, shared) if shared else plain, sort_keys=True)


def plain_lists(value: Any, shared: dict[int, Any] | None = None) -> Any:
    """Return JSON with lists in place of jsonpickle's tuples.

    Parameters
    ----------
    shared
        Receives the objects of the returned JSON that are in more than one place.

    Examples
    --------
    >>> plain_lists({"a": {"py/tuple": [1, {"py/tuple": []}]}})
    {'a': [1, []]}
    """
    done: dict[int, Any] = {}

    def plain(found: Any) -> Any:
        if not isinstance(found, (list, dict)):
            return found
        made = done.get(id(found))
        if made is not None:
            if shared is not None:
                shared[id(made)] = made
            return made
        if isinstance(found, list):
            made = [plain(each) for each in found]
        elif list(found) == ["py/tuple"] and isinstance(found["py/tuple"], list):
            made = plain(found["py/tuple"])
        elif list(found) == ["py/set"] and isinstance(found["py/set"], list):
            # The order of a set differs between processes.
            members = [plain(each) for each in found["py/set"]]
            made = {"py/set": sorted(members, key=lambda each: json.dumps(each, sort_keys=True))}
        else:
            made = {key: plain(each) for key, each in found.items()}
        done[id(found)] = made
        return made

    return plain(value)


def _labelled(value: Any, shared: dict[int, Any]) -> Any:
    """Return JSON with a label in each place of the shared objects, in the order of the keys."""
    labels: dict[int, int] = {}

    def label(found: Any) -> Any:
        if not isinstance(found, (list, dict)):
            return found
        if id(found) in labels:
            return {SAME: labels[id(found)]}
        is_shared = id(found) in shared
        if is_shared:
            labels[id(found)] = len(labels)
        number = len(labels) - 1
        made: Any = (
            [label(each) for each in found]
            if isinstance(found, list)
            else {key: label(found[key]) for key in sorted(found)}
        )
        return {SHARED: number, VALUE: made} if is_shared else made

    return label(value)
