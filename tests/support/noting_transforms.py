"""Transforms that record their calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: The recorded calls of transforms and tasks, in order. The fixture ``worker`` clears them.
did: list[Any] = []


def do(what: str) -> None:
    """Record a call. Nested functions travel by value, with copies of what they refer to."""
    did.append(what)


class Input:
    """A transform, as a package of tasks may define it."""

    gc: Any = None
    work_dir: Path | None = None

    def __init__(self, name: str, error: BaseException | None = None, bad_cleanup: bool = False):
        self.name, self.error, self.bad_cleanup = name, error, bad_cleanup

    def __repr__(self) -> str:
        return f"Input({self.name!r})"

    def transform(self) -> str:
        did.append(f"fetch {self.name}")
        assert self.work_dir is not None
        assert self.work_dir.is_dir()
        if self.error is not None:
            raise self.error
        return self.name.upper()

    def cleanup(self) -> None:
        did.append(f"clean {self.name}")
        if self.bad_cleanup:
            raise OSError("the disk is gone")


class Output:
    """A result hook, likewise."""

    job: Any = None
    gc: Any = None

    def __init__(self, name: str, error: Exception | None = None, deaf: bool = False) -> None:
        self.name, self.error, self.deaf = name, error, deaf

    def __repr__(self) -> str:
        return f"Output({self.name!r})"

    def transform(self, data: Any) -> str:
        did.append(f"push {self.name} {data} of {self.job['_id']} {self.job['title']}")
        if self.error is not None:
            raise self.error
        return f"{self.name}({data})"

    def exception(self) -> None:
        did.append(f"exception {self.name}")
        if self.deaf:
            raise OSError("no ears")

    def cleanup(self) -> None:
        did.append(f"clean {self.name}")
