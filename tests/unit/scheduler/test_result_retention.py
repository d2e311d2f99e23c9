"""Results stay on the cluster while they are of use, within limits."""

from __future__ import annotations

import pytest

from girder_dask.scheduler.dependencies import DependencyGraph
from girder_dask.scheduler.result_retention import RetainedResults
from tests.support.dispatch_site import MemoryCluster


class Shelf:
    """Results that no job needs, unless :meth:`need` says so."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.graph = DependencyGraph()
        self.retained = RetainedResults(
            self.cluster,
            self.graph,
            ttl_s=100.0,
            max_bytes=1000,
        )

    def need(self, job_id: str) -> None:
        self.graph.add("dependent", [job_id])

    def need_nothing(self) -> None:
        self.graph.remove("dependent")

    def add(self, job_id: str, nbytes: int = 10, *, stored: bool = False) -> None:
        self.retained.add(job_id, f"key-{job_id}", nbytes, stored=stored)

    @property
    def jobs(self) -> str:
        return "".join(i for i in "abcdefgh" if self.retained.key(i) is not None)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_stored_result_without_dependents_is_released_at_once(shelf: Shelf) -> None:
    shelf.add("a", stored=True)
    assert shelf.cluster.released == ["key-a"]
    assert len(shelf.retained) == 0
    assert shelf.cluster.next_time() is None


def test_stored_result_is_retained_for_dependents(shelf: Shelf) -> None:
    shelf.need("a")
    shelf.add("a", stored=True)
    shelf.cluster.advance(1000)
    assert shelf.jobs == "a"
    shelf.need_nothing()
    shelf.retained.release_if_unneeded("a")
    assert shelf.cluster.released == ["key-a"]


def test_unstored_result_is_retained_until_it_expires(shelf: Shelf) -> None:
    shelf.add("a")
    shelf.cluster.advance(50)
    shelf.add("b")
    shelf.cluster.advance(49)
    assert shelf.jobs == "ab"
    shelf.cluster.advance(1)
    assert shelf.jobs == "b"
    shelf.cluster.advance(50)
    assert shelf.jobs == ""
    assert shelf.cluster.released == ["key-a", "key-b"]
    assert shelf.retained.nbytes == 0
    assert shelf.cluster.next_time() is None


def test_expired_result_is_released_once_unneeded(shelf: Shelf) -> None:
    shelf.need("a")
    shelf.add("a")
    shelf.cluster.advance(60)
    shelf.add("b")
    shelf.need_nothing()
    shelf.retained.release_if_unneeded("a")
    shelf.cluster.advance(41)
    assert shelf.jobs == "b", "the time of a value does not depend on that of another"
    shelf.need("b")
    shelf.cluster.advance(200)
    assert shelf.jobs == "b"
    shelf.need_nothing()
    shelf.retained.release_if_unneeded("b")
    assert shelf.jobs == ""


def test_oldest_results_are_released_beyond_the_byte_limit(shelf: Shelf) -> None:
    for job in "abc":
        shelf.add(job, 400)
    assert shelf.jobs == "bc"
    shelf.add("d", 900)
    assert shelf.jobs == "d"
    assert shelf.retained.nbytes == 900
    shelf.add("e", 1001)
    assert shelf.jobs == ""


def test_needed_or_wanted_results_do_not_count_towards_the_limit(shelf: Shelf) -> None:
    shelf.need("a")
    shelf.cluster.wanted.add("key-b")
    for job in "abc":
        shelf.add(job, 800)
    assert shelf.jobs == "abc"
    shelf.add("d", 300)
    assert shelf.jobs == "abd"
    shelf.need_nothing()
    shelf.retained.release_if_unneeded("a")
    assert shelf.jobs == "bd"


def test_wanted_result_is_retained_until_a_notebook_drops_it(shelf: Shelf) -> None:
    shelf.cluster.wanted.add("key-a")
    shelf.add("a")
    shelf.cluster.advance(1000)
    assert shelf.jobs == "a"
    shelf.cluster.wanted.clear()
    shelf.cluster.advance(31)
    assert shelf.jobs == ""


def test_lost_result_is_not_released(shelf: Shelf) -> None:
    shelf.add("a", 400)
    assert "key-a" in shelf.retained
    shelf.retained.on_lost("key-a")
    shelf.retained.on_lost("key-a")
    shelf.retained.release_if_unneeded("a")
    shelf.retained.release("a")
    assert (shelf.jobs, shelf.retained.nbytes, shelf.cluster.released) == ("", 0, [])
    assert "key-a" not in shelf.retained
