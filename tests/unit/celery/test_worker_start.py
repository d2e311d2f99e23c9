"""A worker that joins outlives whatever the import of its tasks does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from girder_dask.errors import TaskNotFoundError
from girder_dask.worker import celery_imports


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TaskNotFoundError("Install x."), "cannot run the tasks of girder_worker. Install x."),
        (RuntimeError("broken"), "Importing the tasks of girder_worker failed: RuntimeError"),
    ],
)
def test_an_error_of_the_imports_is_logged_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    message: str,
) -> None:
    def fail() -> Any:
        raise error

    async def join() -> None:
        plugin = celery_imports.CeleryImportsPlugin()
        await plugin.setup(None)  # type: ignore[arg-type]
        assert plugin._imports is not None
        with contextlib.suppress(RuntimeError):
            await plugin._imports

    monkeypatch.setattr(celery_imports, "worker_app", fail)
    with caplog.at_level(logging.WARNING):
        asyncio.run(join())
    (told,) = caplog.messages
    assert message in told
