"""HTTP requests and answers that exceptions hold, without their credentials.

Exceptions of ``requests``, ``httpx`` and ``girder_client`` hold the failed request with its
headers: tokens, cookies, passwords. Users who read how a job ended must not see these.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from girder_dask.utils.foreign_objects import call_or_default

__all__ = ["MAX_LINKED", "group_members", "linked_exceptions", "strip_headers"]

#: The most exceptions that are visited among the causes and members of one.
MAX_LINKED = 200

# Read as Python itself does, since a class of exceptions may define properties of these names.
_CAUSE: Any = BaseException.__dict__["__cause__"]
_CONTEXT: Any = BaseException.__dict__["__context__"]
_GROUP = BaseExceptionGroup  # noqa: F821 - Python has it from 3.11 on
_EXCEPTIONS: Any = _GROUP.__dict__["exceptions"]

#: Libraries whose objects are stripped.
_LIBRARIES = frozenset({"requests", "httpx", "urllib3", "girder_client", "aiohttp"})

# Attributes by which these objects hold each other.
_NESTED = ("request", "_request", "response", "_response", "history")
# Attributes that are emptied.
_CREDENTIALS = ("headers", "_headers", "cookies", "_cookies", "auth", "_auth")


def linked_exceptions(error: BaseException, max_count: int = MAX_LINKED) -> Iterator[BaseException]:
    """Yield an exception, its causes, contexts and members, up to ``max_count``.

    >>> first, second = KeyError('coins'), ValueError('no coins')
    >>> second.__cause__ = first
    >>> list(linked_exceptions(second))
    [ValueError('no coins'), KeyError('coins')]
    """
    seen: set[int] = set()
    waiting: deque[BaseException | None] = deque([error])
    while waiting and len(seen) < max_count:
        each = waiting.popleft()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += (_CAUSE.__get__(each), _CONTEXT.__get__(each), *group_members(each)[:max_count])


def group_members(error: BaseException) -> Sequence[BaseException]:
    """Return the members of an exception group, none for another exception."""
    if issubclass(type(error), _GROUP):
        members: Sequence[BaseException] = _EXCEPTIONS.__get__(error)
        return members
    return ()


def strip_headers(error: BaseException) -> None:
    """Empty the headers and cookies of all requests and answers that an exception holds.

    Those of its causes, contexts and members are emptied, too.
    """
    seen: set[int] = set()
    for each in linked_exceptions(error):
        call_or_default(functools.partial(_strip_one, each, seen), None)


def _strip_one(error: BaseException, seen: set[int]) -> None:
    for value in [*error.args, *vars(error).values()]:
        _strip(value, seen)


def _strip(value: Any, seen: set[int]) -> None:
    if isinstance(value, (list, tuple)):
        for each in value[:100]:
            _strip(each, seen)
        return
    if type(value).__module__.partition(".")[0] not in _LIBRARIES or id(value) in seen:
        return
    seen.add(id(value))
    attributes = getattr(value, "__dict__", {})
    for name in _CREDENTIALS:
        if attributes.get(name) is not None:
            with contextlib.suppress(Exception):
                setattr(value, name, type(attributes[name])())
    for name in _NESTED:
        if attributes.get(name) is not None:
            _strip(attributes[name], seen)
