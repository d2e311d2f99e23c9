"""Values stay on the cluster while they are good for something, within bounds."""

from __future__ import annotations

import pytest

from girder_dask.scheduler.retention import RetainedResults
from tests.support.dispatch_site import MemoryCluster


class Shelf:
    """Values of which nobody needs any, unless they are in ``needed``."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.needed: set[str] = set()
        self.kept = RetainedResults(
            self.cluster,
            self.needed.__contains__,
            seconds=100.0,
            nbytes=1000,
            clock=lambda: self.cluster.now,
        )

    def add(self, job_id: str, nbytes: int = 10, *, stored: bool = False) -> None:
        self.kept.add(job_id, f"key-{job_id}", nbytes, stored=stored)

    @property
    def jobs(self) -> str:
        return "".join(i for i in "abcdefgh" if self.kept.key(i) is not None)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_what_girder_has_and_nobody_needs_is_let_go_of_at_once(shelf: Shelf) -> None:
    shelf.add("a", stored=True)
    assert shelf.cluster.dropped == ["key-a"]
    assert len(shelf.kept) == 0
    assert shelf.cluster.next_time() is None


def test_what_girder_has_stays_while_it_is_needed(shelf: Shelf) -> None:
    shelf.needed.add("a")
    shelf.add("a", stored=True)
    shelf.cluster.advance(1000)
    assert shelf.jobs == "a"
    shelf.needed.clear()
    shelf.kept.reconsider("a")
    assert shelf.cluster.dropped == ["key-a"]


def test_what_only_the_cluster_has_stays_for_its_time(shelf: Shelf) -> None:
    shelf.add("a")
    shelf.cluster.advance(50)
    shelf.add("b")
    shelf.cluster.advance(49)
    assert shelf.jobs == "ab"
    shelf.cluster.advance(1)
    assert shelf.jobs == "b"
    shelf.cluster.advance(50)
    assert shelf.jobs == ""
    assert shelf.cluster.dropped == ["key-a", "key-b"]
    assert shelf.kept.nbytes == 0
    assert shelf.cluster.next_time() is None


def test_a_value_is_let_go_of_when_it_is_no_longer_needed_after_its_time(shelf: Shelf) -> None:
    shelf.needed.add("a")
    shelf.add("a")
    shelf.cluster.advance(60)
    shelf.add("b")
    shelf.needed.clear()
    shelf.kept.reconsider("a")
    shelf.cluster.advance(41)
    assert shelf.jobs == "b", "the time of a value does not depend on that of another"
    shelf.needed.add("b")
    shelf.cluster.advance(200)
    assert shelf.jobs == "b"
    shelf.needed.clear()
    shelf.kept.reconsider("b")
    assert shelf.jobs == ""


def test_the_oldest_go_when_there_are_too_many_bytes(shelf: Shelf) -> None:
    for job in "abc":
        shelf.add(job, 400)
    assert shelf.jobs == "bc"
    shelf.add("d", 900)
    assert shelf.jobs == "d"
    assert shelf.kept.nbytes == 900
    shelf.add("e", 1001)
    assert shelf.jobs == ""


def test_what_is_needed_or_wanted_does_not_count(shelf: Shelf) -> None:
    shelf.needed.add("a")
    shelf.cluster.wanted.add("key-b")
    for job in "abc":
        shelf.add(job, 800)
    assert shelf.jobs == "abc"
    shelf.add("d", 300)
    assert shelf.jobs == "abd"
    shelf.needed.clear()
    shelf.kept.reconsider("a")
    assert shelf.jobs == "bd"


def test_what_a_notebook_wants_stays_until_it_does_no_more(shelf: Shelf) -> None:
    shelf.cluster.wanted.add("key-a")
    shelf.add("a")
    shelf.cluster.advance(1000)
    assert shelf.jobs == "a"
    shelf.cluster.wanted.clear()
    shelf.cluster.advance(31)
    assert shelf.jobs == ""


def test_what_is_lost_is_not_dropped(shelf: Shelf) -> None:
    shelf.add("a", 400)
    assert "key-a" in shelf.kept
    shelf.kept.lose("key-a")
    shelf.kept.lose("key-a")
    shelf.kept.reconsider("a")
    shelf.kept.release("a")
    assert (shelf.jobs, shelf.kept.nbytes, shelf.cluster.dropped) == ("", 0, [])
    assert "key-a" not in shelf.kept
