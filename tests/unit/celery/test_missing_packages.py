"""Girder without the packages of girder_worker's tasks."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from girder_dask.errors import GirderDaskError


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a test the start of the plugin in a Girder that has no girder_worker."""
    from girder_dask.plugin import celery

    monkeypatch.setattr(celery, "getPlugin", lambda _: None)  # it needs girder_worker as well
    monkeypatch.setitem(sys.modules, "girder_worker.app", None)
    return lambda: celery.mount({}, None)  # type: ignore[arg-type]


def test_girder_that_has_chosen_dask_says_what_to_install(
    mount: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIRDER_WORKER_BROKER", "dask://")
    with pytest.raises(GirderDaskError, match=r"pip install 'girder_dask\[celery\]'") as error:
        mount()
    assert "GIRDER_WORKER_BROKER is dask://" in str(error.value)


def test_girder_that_has_not_chosen_dask_starts(
    mount: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIRDER_WORKER_BROKER", raising=False)
    mount()
