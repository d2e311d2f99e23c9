"""The lease of the scheduler that leads, in the database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(autouse=True)
def no_lease() -> None:
    from girder_dask.plugin.scheduler_lease import DaskScheduler

    DaskScheduler().collection.delete_many({})


def test_first_scheduler_leads_and_renews() -> None:
    from girder_dask.plugin import scheduler_lease as leases

    assert leases.current() is None
    first = leases.request("a", "tcp://a:1 on a", "host a")
    again = leases.request("a", "tcp://a:1 on a", "host a")
    assert (first.leads, first.renewals) == (True, 1)
    assert (again.leads, again.renewals) == (True, 2)
    current = leases.current()
    assert current is not None
    assert current.place == "tcp://a:1 on a"


def test_second_scheduler_stands_by_until_the_lease_is_free() -> None:
    from girder_dask.plugin import scheduler_lease as leases

    leases.request("a", "tcp://a:1 on a", "host a")
    second = leases.request("b", "tcp://b:1 on b", "host b")
    assert (second.leads, second.place, second.renewals) == (False, "tcp://a:1 on a", 1)
    leases.release("b")  # it has none
    assert not leases.request("b", "tcp://b:1 on b", "host b").leads
    leases.release("a")
    assert leases.current() is None
    assert leases.request("b", "tcp://b:1 on b", "host b").leads
    assert not leases.request("a", "tcp://a:1 on a", "host a").leads


def test_lease_is_taken_over_if_it_was_not_renewed_meanwhile() -> None:
    from girder_dask.plugin import scheduler_lease as leases

    seen = leases.request("a", "tcp://a:1 on a", "host a").renewals
    leases.request("a", "tcp://a:1 on a", "host a")
    assert not leases.request("b", "tcp://b:1 on b", "host b", take_over=seen).leads
    assert leases.request("b", "tcp://b:1 on b", "host b", take_over=seen + 1).leads
    assert not leases.request("a", "tcp://a:1 on a", "host a").leads


def test_scheduler_at_the_place_of_the_last_one_leads_at_once() -> None:
    from girder_dask.plugin import scheduler_lease as leases

    leases.request("a", "tcp://127.0.0.1:1 on dask", "host a")
    assert not leases.request("b", "tcp://127.0.0.1:1 on dask", "host b").leads
    assert leases.request("c", "tcp://127.0.0.1:1 on dask", "host a").leads


def test_one_of_many_that_start_together_leads() -> None:
    from girder_dask.plugin import scheduler_lease as leases

    def ask(n: int) -> bool:
        return leases.request(f"s{n}", f"tcp://h{n}:1 on h{n}", f"host {n}").leads

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1
