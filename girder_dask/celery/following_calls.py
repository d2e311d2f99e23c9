"""The calls that follow a message of Celery, where Celery itself takes them from.

Everything else in a message is data, whatever it looks like: also a mapping among the arguments
that has the form of a call.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from girder_dask.celery import message_body, shared_values
from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import CHORD_POLL, FOLLOWING_CALLS, LOCAL_QUEUE

__all__ = ["FollowingCall", "call_text", "compared", "following_calls", "hooks", "own_options"]

# Compositions, and the keyword arguments with their members. Celery runs the members alone.
_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "celery.chain": ("tasks",),
    "celery.group": ("tasks",),
    "celery.chord": ("header", "body"),
}
# Tasks of Celery that call the task of a signature in their own process. Only its name counts.
_MAPS = frozenset({"celery.map", "celery.starmap", "celery.chunks"})
_CHUNKS = "celery.chunks"
# What a call has. Celery takes other keys for fields of a request.
_SIGNATURE_KEYS = frozenset(
    {"task", "args", "kwargs", "options", "subtask_type", "chord_size", "immutable"}
)
# The most keys and items that are looked at in the calls after a message, and what an item costs
# that is copied into another call.
_MAX_LOOKED_AT, _ITEM_COST = 2_000_000, 10
# The tasks of the classes of Celery's compositions.
_CLASSES = {
    "chain": "celery.chain",
    "group": "celery.group",
    "chord": "celery.chord",
    "xmap": "celery.map",
    "xstarmap": "celery.starmap",
    "chunks": "celery.chunks",
}
# The prefix of the tasks of Celery itself.
_OWN_TASKS = "celery."
# Options of a signature with calls that follow it.
_OPTIONS = ("link", "link_error", "chord", "chain")


class FollowingCall(NamedTuple):
    """A call that follows a message.

    Attributes
    ----------
    task, args, kwargs
        The call, as JSON.
    is_mutable
        Whether Celery adds the result of what came before as the first argument.
    is_local
        Whether its options, or those of a composition that it is in, name the queue ``local``.
    options
        Its options.
    """

    task: str
    args: Any
    kwargs: Any
    is_mutable: bool
    is_local: bool
    options: Mapping[str, Any] = {}


def following_calls(task: str, body: Any, *, strict: bool = False) -> Iterator[FollowingCall]:
    """Yield the calls that follow a message with a task and a body, the members of compositions.

    Parameters
    ----------
    strict
        Whether to raise ArgumentError for a call that the worker may open as another one: with a
        reference to another part of the message, with tags of jsonpickle where none belong, or with
        a class that is not that of its task. Otherwise such calls are left out.

    Examples
    --------
    >>> add = {"task": "a.add", "args": [{"task": "no.call"}]}
    >>> group = {"task": "celery.group", "kwargs": {"tasks": [add]}}
    >>> body = [[{"task": "no.call"}], {}, {"chain": [group]}]
    >>> [call.task for call in following_calls("a.b", body)]
    ['a.add']
    """
    budget = _Budget()
    left: list[tuple[Any, bool]] = [(_Body(task, body), False)]
    # A call may be in more than one place. The objects stay, so that no other has their ids.
    seen: dict[tuple[int, bool], Any] = {}
    while left:
        found, is_local = left.pop()
        if (id(found), is_local) in seen:
            continue
        seen[id(found), is_local] = found
        try:
            if isinstance(found, _Body):
                left += [(inner, is_local) for inner in found.calls()]
                continue
            items = _items(found)
            if items is not None:
                left += [(each, is_local) for each in items]
                continue
            budget.spend_on(found)
            options = _check_signature(found)
            is_local = is_local or options.get("queue") == LOCAL_QUEUE
            name, args, kwargs = found["task"], found.get("args"), found.get("kwargs")
            inner = list(_inner(name, args, kwargs)) if name.startswith(_OWN_TASKS) else []
        except ArgumentError:
            if strict:
                raise
            continue
        left += [(each, is_local) for each in inner]
        left += [(options[each], False) for each in _OPTIONS if each in options]
        if name not in _MEMBERS:
            yield FollowingCall(name, args, kwargs, not found.get("immutable"), is_local, options)


class _Budget:
    """The keys and items that are looked at. What calls share counts in each of them."""

    def __init__(self) -> None:
        self._left = _MAX_LOOKED_AT

    def spend_on(self, call: Mapping[str, Any]) -> None:
        """Count a call. Raise ArgumentError if there is too much."""
        values = (call, call.get("options"), call.get("kwargs"))
        self._left -= sum(len(each) for each in values if isinstance(each, Mapping))
        kwargs = call.get("kwargs")
        if call.get("task") == _CHUNKS and isinstance(kwargs, Mapping):
            # Each part has items of its own.
            self._left -= len(_sequence(kwargs.get("it"))) * _ITEM_COST
        if self._left < 0:
            raise ArgumentError(
                "The calls that follow the message share so much that they cannot be checked."
            )


def own_options(call: FollowingCall) -> Mapping[str, Any]:
    """Return the options of a call that jsonpickle opens by running code, without other calls."""
    rest = {name: each for name, each in call.options.items() if name not in _OPTIONS}
    headers = rest.pop("headers", None)
    of_headers = _code_of(headers) if isinstance(headers, Mapping) else {}
    return _code_of(rest) | ({"headers": of_headers} if of_headers else {})


def _code_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: each
        for name, each in values.items()
        if isinstance(each, (Mapping, list)) and message_body.find_code(each, name)
    }


def hooks(call: FollowingCall) -> Any:
    """Return the transforms of the result of a call, from where girder_worker takes them."""
    name, kwargs = message_body.HOOKS, call.kwargs
    for given in (call.options, kwargs, call.options.get("headers")):
        if isinstance(given, Mapping) and name in given:
            return given[name]
    return None


def compared(task: str, args: Any, kwargs: Any) -> list[Any]:
    """Return what is compared of a call, as JSON."""
    if task in _MAPS and isinstance(kwargs, Mapping) and isinstance(kwargs.get("task"), Mapping):
        kwargs = {**kwargs, "task": kwargs["task"].get("task")}
    return [task, args or [], kwargs or {}]


def call_text(task: str, args: Any, kwargs: Any) -> str:
    """Return a call as text, the same for the same call."""
    return shared_values.as_text(compared(task, args, kwargs))


class _Body(NamedTuple):
    """The message itself, whose arguments and options hold the first calls."""

    task: str
    body: Any

    def calls(self) -> Iterator[Any]:
        """Yield them."""
        given, more, embed = _sequence(self.body)
        yield from _inner(self.task, given, more)
        plain = _plain(embed)
        for name in sorted(FOLLOWING_CALLS):
            given = plain.get(name)
            # Celery takes each item of a list for a call, and each key of a mapping.
            yield given if name == "chord" else _sequence(given)


def _unclear(what: Any) -> ArgumentError:
    return ArgumentError(
        "A call that follows the message cannot be checked, since the worker may open it as "
        f"another one: {reprlib.repr(what)[:200]}"
    )


def _plain(value: Any) -> Mapping[str, Any]:
    """Return a mapping that jsonpickle opens as it is; raise ArgumentError for others."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or any(_is_tag(key) for key in value):
        raise _unclear(value)
    return value


def _is_tag(key: Any) -> bool:
    return not isinstance(key, str) or key.startswith(("py/", "json://"))


def _sequence(value: Any) -> Sequence[Any]:
    """Return a list or a tuple, as jsonpickle writes it; raise ArgumentError for anything else."""
    if value is None:
        return ()
    if isinstance(value, Mapping) and list(value) == ["py/tuple"]:
        value = value["py/tuple"]
    if not isinstance(value, (list, tuple)):
        raise _unclear(value)
    return value


def _items(found: Any) -> Sequence[Any] | None:
    """Return the items of a container of calls, none of what is no call, and None for a call."""
    if isinstance(found, Mapping):
        if not any(_is_tag(key) for key in found):
            return None if found else ()
        return _sequence(found)
    if found and not isinstance(found, (list, tuple)):
        raise _unclear(found)  # a text, which Celery takes for the name of a task
    return found or ()


def _check_signature(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a call; raise ArgumentError if Celery may take it for another."""
    name, kind = found.get("task"), found.get("subtask_type")
    is_clear = (
        isinstance(name, str)
        and name != CHORD_POLL  # which only Celery sends, as a message of its own
        and (not kind or (isinstance(kind, str) and _CLASSES.get(kind) == name))
        and isinstance(found.get("immutable"), (bool, type(None)))
        and found.keys() <= _SIGNATURE_KEYS
        # Without its class, Celery calls a composition with its arguments, which may have members.
        and not (name in _MEMBERS and not kind and found.get("args"))
    )
    if not is_clear:
        raise _unclear(found)
    return _plain(found.get("options"))


def _inner(task: str, args: Any, kwargs: Any) -> Iterator[Any]:
    """Yield the calls among the arguments of a task of Celery itself."""
    if task in _MEMBERS:
        given = _plain(kwargs)
        for name in _MEMBERS[task]:
            yield given.get(name)
    elif task == CHORD_POLL:
        yield from _sequence(args)[1:2]
        yield _plain(kwargs).get("callback")
    elif task in _MAPS:
        given = _plain(kwargs)
        if given.get("task") is not None:
            _check_signature(_plain(given["task"]))
        if task == _CHUNKS:
            yield from _parts(given)


def _parts(kwargs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the calls that ``celery.chunks`` makes of its own."""
    items, size = _sequence(kwargs.get("it")), kwargs.get("n")
    if type(size) is not int or size < 1:
        return
    for start in range(0, len(items), size):
        part = {"task": kwargs.get("task"), "it": items[start : start + size]}
        yield {"task": "celery.starmap", "kwargs": part, "immutable": True}
