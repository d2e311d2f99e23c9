"""Tasks that go on for a while, and say where they are."""

from __future__ import annotations

import time
from typing import Any

from girder_dask import task

__all__ = ["does", "steady"]


@task(bind=True)
def does(self: Any, code: str, **given: Any) -> Any:
    """Execute code in a thread of the worker; its ``result`` is returned.

    ``self`` is the running job; ``given`` are more names that the code sees.
    """
    names: dict[str, Any] = {"self": self, "result": None, **given}
    exec(code, names)  # noqa: S102 - it is what this task is for
    return names["result"]


@task
def steady(lines: int, seconds: float = 0.0, number: int = 0) -> int:
    """Print ``line 0`` to ``line n-1`` in about so many seconds, and return the number."""
    for i in range(lines):
        print(f"line {i}")
        time.sleep(seconds / lines)
    return number
