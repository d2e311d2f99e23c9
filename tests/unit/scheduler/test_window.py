"""The window: which jobs Dask gets next."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from girder_dask.protocol.messages import JobSpec
from girder_dask.scheduler.window import Kind, QueuedJob, Window

GPU = {"gpu": 1.0}
_numbers = itertools.count()


def job(job_id: str, **fields: object) -> QueuedJob:
    spec = JobSpec(id=job_id, attempt=1, task="m:f", **fields)  # type: ignore[arg-type]
    return QueuedJob(spec, {}, (-spec.priority, 0.5, next(_numbers)))


def window(*jobs: QueuedJob) -> Window:
    made = Window()
    for each in jobs:
        made.add(each)
    return made


def taken(window: Window, size: float, gpus: float = 0) -> list[str]:
    return [each.spec.id for each in window.take(lambda kind: gpus if kind else size)]


def key(job_id: str) -> str:
    return f"f-{job_id}-1"


def test_take_keeps_to_the_size_and_to_the_order_of_arrival() -> None:
    some = window(*(job(each) for each in "abcd"))
    assert taken(some, 2) == ["a", "b"]
    assert taken(some, 2) == []
    assert (some.given, some.waiting) == (2, 2)
    assert some.remove(key("b"))
    assert taken(some, 2) == ["c"]
    assert taken(some, 10) == ["d"]


def test_take_goes_by_priority() -> None:
    some = window(job("a"), job("b", priority=-1), job("c", priority=2), job("d", priority=1))
    assert taken(some, 3) == ["c", "d", "a"]
    assert list(some.all_waiting()) == [key("b")]


def test_take_of_one_kind_does_not_depend_on_others() -> None:
    some = window(*(job(f"gpu{n}", resources=GPU) for n in range(9)), job("a"), job("b"))
    assert taken(some, 5, gpus=2) == ["gpu0", "gpu1", "a", "b"]
    (kind,) = some.waiting_kinds()
    assert dict(kind) == GPU
    assert set(some.waiting_keys(kind)) == {key(f"gpu{n}") for n in range(2, 9)}


def test_take_lets_higher_priorities_pass_a_full_window_but_not_without_limit() -> None:
    some = window(*(job(f"low{n}") for n in range(4)))
    assert taken(some, 2) == ["low0", "low1"]
    some.add(job("high", priority=1))
    assert taken(some, 2) == ["high"]
    for n in range(9):
        some.add(job(f"higher{n}", priority=2 + n))
    assert taken(some, 2) == ["higher8", "higher7"]
    some.add(job("last", priority=100))
    assert taken(some, 2) == ["last"]
    for n in range(9):
        some.add(job(f"flood{n}", priority=200 + n))
        taken(some, 2)
    assert some.given == 8


def test_remove_forgets_jobs_that_wait_and_those_that_dask_has() -> None:
    some = window(job("a"), job("b"), job("c"))
    assert taken(some, 1) == ["a"]
    assert not some.remove(key("b"))
    assert some.remove(key("a"))
    assert not some.remove(key("a"))
    assert not some.remove(key("unknown"))
    assert taken(some, 5) == ["c"]
    assert some.remove(key("c"))
    assert (some.given, some.waiting, some.waiting_kinds()) == (0, 0, [])


_jobs = st.tuples(st.just("add"), st.integers(-2, 2), st.sampled_from([None, GPU, {"disk": 2.0}]))
_ends = st.tuples(st.just("remove"), st.integers(0, 50), st.none())


@given(st.lists(_jobs | _ends, max_size=60), st.integers(1, 4))
def test_window_is_full_or_nothing_waits_over_any_history(
    steps: list[tuple[str, int, object]], limit: int
) -> None:
    some = Window()
    live: dict[str, QueuedJob] = {}
    given_keys: set[str] = set()

    def size(kind: Kind) -> int:
        return limit + len(kind)

    for step, number, resources in steps:
        if step == "add":
            added = job(str(next(_numbers)), priority=number, resources=resources)
            live[added.spec.key] = added
            some.add(added)
        elif live:
            ended = sorted(live)[number % len(live)]
            assert some.remove(ended) == (ended in given_keys)
            given_keys.discard(ended)
            del live[ended]
        given_keys |= {each.spec.key for each in some.take(size)}
        by_kind: dict[Kind, list[QueuedJob]] = {}
        for each in live.values():
            by_kind.setdefault(each.kind, []).append(each)
        for kind, jobs in by_kind.items():
            has = [each for each in jobs if each.spec.key in given_keys]
            waits = [each for each in jobs if each.spec.key not in given_keys]
            assert len(has) <= 4 * size(kind)
            assert not waits or len(has) >= size(kind)
            if waits and len(has) < 4 * size(kind):
                best = min(each.priority[0] for each in waits)
                assert sum(each.priority[0] <= best for each in has) >= size(kind)
