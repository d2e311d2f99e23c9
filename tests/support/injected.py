"""Errors injected into background loops, and the log messages about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


class Injected(Exception):
    """The injected error."""


class Fails:
    """A callable that fails at its first call, and then calls the real one."""

    def __init__(self, real: Callable[..., Any] = lambda *_args, **_more: None) -> None:
        self.calls = 0
        self._real = real

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise Injected("for this test")
        return self._real(*args, **more)


def inject(owner: Any, name: str) -> Fails:
    """Have a method of an object fail once."""
    fails = Fails(getattr(owner, name))
    setattr(owner, name, fails)
    return fails


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return our loggers' messages about the injected error, with its traceback."""
    found = [r for r in caplog.records if r.exc_info and r.exc_info[0] is Injected]
    return [r.getMessage() for r in found if r.name.startswith("girder_dask")]
