"""Requests and answers of HTTP that an exception holds, without what signs them.

Exceptions of ``requests``, ``httpx`` and ``girder_client`` have the request that went wrong, with
its headers: tokens, cookies, passwords. Whoever reads how a job ended has no use for these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["chain", "strip_headers"]

#: Whose objects are stripped.
_LIBRARIES = frozenset({"requests", "httpx", "urllib3", "girder_client", "aiohttp"})

# Under these names they hold each other.
_NESTED = ("request", "_request", "response", "_response", "history")
# What of them is emptied.
_SIGNED = ("headers", "_headers", "cookies", "_cookies", "auth", "_auth")


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and those that it was raised from or in place of.

    >>> first, second = KeyError('coins'), ValueError('no coins')
    >>> second.__cause__ = first
    >>> list(chain(second))
    [ValueError('no coins'), KeyError('coins')]
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def strip_headers(error: BaseException) -> None:
    """Empty the headers and cookies of all requests and answers that an exception holds.

    Also those that the exceptions hold which led to it.
    """
    seen: set[int] = set()
    for each in chain(error):
        with contextlib.suppress(Exception):  # a foreign class may do anything
            for value in [*each.args, *vars(each).values()]:
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
    for name in _SIGNED:
        if attributes.get(name) is not None:
            with contextlib.suppress(Exception):
                setattr(value, name, type(attributes[name])())
    for name in _NESTED:
        if attributes.get(name) is not None:
            _strip(attributes[name], seen)
