"""The calls that follow a message of Celery, where Celery itself takes them from.

Everything else in a message is data, whatever it looks like: also a mapping among the arguments
that has the form of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from girder_dask.celery import message_body
from girder_dask.protocol.celery_message import FOLLOWING_CALLS, LOCAL_QUEUE

__all__ = ["FollowingCall", "call_text", "following_calls"]

# Compositions, and the keyword arguments with their members. Celery runs the members alone.
_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "celery.chain": ("tasks",),
    "celery.group": ("tasks",),
    "celery.chord": ("header", "body"),
}
# Tasks of Celery that call the task of a signature in their own process. Only its name counts.
_MAPS = frozenset({"celery.map", "celery.starmap", "celery.chunks"})
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
    """

    task: str
    args: Any
    kwargs: Any
    is_mutable: bool
    is_local: bool


def following_calls(task: str, body: Any) -> Iterator[FollowingCall]:
    """Yield the calls that follow a message with a task and a body, the members of compositions.

    >>> add = {"task": "a.add", "args": [{"task": "no.call"}]}
    >>> group = {"task": "celery.group", "kwargs": {"tasks": [add]}}
    >>> body = [[{"task": "no.call"}], {}, {"chain": [group]}]
    >>> [call.task for call in following_calls("a.b", body)]
    ['a.add']
    """
    given, more, embed = _as_list(body)
    left = [(inner, False) for inner in _inner(task, given, more)]
    if isinstance(embed, Mapping):
        left += [(embed.get(name), False) for name in sorted(FOLLOWING_CALLS)]
    while left:
        found, is_local = left.pop()
        if isinstance(found, (list, tuple)):
            left += [(each, is_local) for each in found]
        elif isinstance(found, Mapping) and isinstance(found.get("task"), str):
            options = _options(found)
            is_local = is_local or options.get("queue") == LOCAL_QUEUE
            name, args, kwargs = found["task"], found.get("args"), found.get("kwargs")
            if name.startswith(_OWN_TASKS):
                left += [(inner, is_local) for inner in _inner(name, args, kwargs)]
            left += [(options[each], False) for each in _OPTIONS if each in options]
            if name not in _MEMBERS:
                yield FollowingCall(name, args, kwargs, not found.get("immutable"), is_local)
        elif isinstance(found, Mapping):  # a container, as jsonpickle writes it
            left += [(each, is_local) for each in found.values()]


def call_text(task: str, args: Any, kwargs: Any) -> str:
    """Return a call as text, the same for the same call."""
    if task in _MAPS and isinstance(kwargs, Mapping) and isinstance(kwargs.get("task"), Mapping):
        kwargs = {**kwargs, "task": kwargs["task"].get("task")}
    return message_body.as_text([task, args or [], kwargs or {}])


def _options(signature: Mapping[str, Any]) -> Mapping[str, Any]:
    options = signature.get("options")
    return options if isinstance(options, Mapping) else {}


def _inner(task: str, args: Any, kwargs: Any) -> Iterator[Any]:
    """Yield the calls among the arguments of a task of Celery itself."""
    given = kwargs if isinstance(kwargs, Mapping) else {}
    for name in _MEMBERS.get(task, ()):
        yield given.get(name)
    if task == "celery.chord_unlock":
        yield from _as_list(args)[1:2]
        yield given.get("callback")
    if task == "celery.chunks":
        yield from _parts(given)


def _parts(kwargs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the calls that ``celery.chunks`` makes of its own."""
    items, size = _as_list(kwargs.get("it")), kwargs.get("n")
    if not isinstance(size, int) or size < 1:
        return
    for start in range(0, len(items), size):
        part = {"task": kwargs.get("task"), "it": items[start : start + size]}
        yield {"task": "celery.starmap", "kwargs": part, "immutable": True}


def _as_list(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping) and list(value) == ["py/tuple"]:
        value = value["py/tuple"]
    return value if isinstance(value, (list, tuple)) else ()
