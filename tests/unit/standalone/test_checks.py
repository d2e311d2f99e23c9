"""The health checks of the parts of a stack."""

from __future__ import annotations

import pytest

from girder_dask.errors import StackError
from girder_dask.standalone.checks import girder_answers
from tests.support import local_girder


def test_girder_answers_when_it_has_the_plugin() -> None:
    with local_girder.serving() as peer:
        assert not girder_answers(peer.url)
        peer.answers["GET system/version"] = (200, {"release": "5"})
        peer.answers["GET dask/ping"] = (200, {"plugin": "1"})
        assert girder_answers(peer.url)


@pytest.mark.parametrize("status", [400, 404])
def test_girder_answers_says_that_the_plugin_is_missing(status: int) -> None:
    with local_girder.serving() as peer:
        peer.answers["GET system/version"] = (200, {"release": "5"})
        peer.answers["GET dask/ping"] = (status, {"message": "No matching route"})
        with pytest.raises(StackError, match="without the dask plugin"):
            girder_answers(peer.url)


def test_girder_answers_takes_a_busy_girder_for_one_that_is_not_ready() -> None:
    with local_girder.serving() as peer:
        peer.answers["GET system/version"] = (200, {"release": "5"})
        peer.answers["GET dask/ping"] = (503, {"message": "busy"})
        assert not girder_answers(peer.url)
