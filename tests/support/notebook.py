"""Blocks of the documentation that run like the cells of a notebook."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from sybil import Example

__all__ = ["run_block"]


def run_block(example: Example) -> None:
    """Run a block with the names and the connection of those before it on its page."""
    from tests.support.snippets import run

    names = example.namespace.setdefault("_notebook", {})
    stack = example.namespace["fixture"]("girder_stack")
    if not names:
        # Functions of the main module travel by value.
        names |= {"__name__": "__main__", "file_ids": _upload(stack)}
    with _environment(stack, names), _connection(names):
        run(str(example.parsed), names)


def _upload(stack: Any) -> list[str]:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).parent / "data"
    return [stack.upload(data / name)["_id"] for name in ("coins.png", "camera.png", "moon.png")]


@contextmanager
def _environment(stack: Any, names: dict[str, Any]) -> Iterator[None]:
    if "_key" not in names:
        made = stack.admin.post("api_key", parameters={"name": "page", "active": "true"})
        names["_key"] = made["key"]
    variables = {"GIRDER_URL": stack.girder, "GIRDER_API_KEY": names["_key"]}
    with mock.patch.dict(os.environ, {**variables, "DASK_SCHEDULER_ADDRESS": stack.scheduler}):
        yield


@contextmanager
def _connection(names: dict[str, Any]) -> Iterator[None]:
    """Use the connection of a page, separate from those of other pages."""
    from girder_dask.client import connection
    from girder_dask.client.backend import set_backend

    kept = names.get("_connection")
    if kept is not None:
        connection._current = kept
        set_backend(kept._backend)
    try:
        yield
    finally:
        names["_connection"] = connection._current
        connection._current = None
        set_backend(None)
