"""The watch of a scheduler over the lease of another one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from girder_dask.scheduler.lease import SchedulerLease, system_id

DURATION_S = 30.0


class Watch:
    """A scheduler that stands by, and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lease = SchedulerLease("b", "6f1e", DURATION_S, clock=lambda: self.now)

    def look(self, renewals: int, *, leads: bool = False) -> None:
        self.lease.on_answer({"leads": leads, "place": "a", "renewals": renewals})

    @property
    def take_over(self) -> Any:
        return self.lease.request()["take_over"]


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_lease_that_is_renewed_is_not_taken_over(watch: Watch) -> None:
    for renewals in range(20):
        watch.look(renewals)
        watch.now += DURATION_S / 2
        watch.look(renewals)
        assert watch.take_over is None
        watch.now += DURATION_S / 3


def test_lease_is_taken_over_after_its_duration_without_renewal(watch: Watch) -> None:
    for _ in range(6):
        watch.look(7)
        assert watch.take_over is None
        watch.now += DURATION_S / 6
    watch.look(7)
    assert watch.take_over == 7
    assert watch.lease.request()["place"] == "b"


def test_outage_ends_no_lease(watch: Watch) -> None:
    watch.look(7)
    watch.lease.on_failure()
    watch.now += 100 * DURATION_S
    watch.look(7)
    assert watch.take_over is None
    for _ in range(3):
        watch.now += DURATION_S / 3
        watch.look(7)
    assert watch.take_over == 7


def test_pause_of_the_watcher_ends_no_lease(watch: Watch) -> None:
    watch.look(7)
    watch.now += 100 * DURATION_S
    assert watch.take_over is None


def test_first_answer_after_a_pause_of_the_watcher_ends_no_lease(watch: Watch) -> None:
    watch.look(7)
    watch.now += 100 * DURATION_S  # its host slept, with that of the leader
    watch.look(7)
    assert watch.take_over is None


def test_system_id_is_that_of_all_processes_of_a_host() -> None:
    script = "from girder_dask.scheduler.lease import system_id; print(system_id())"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert other.stdout.decode().strip() == system_id() != ""


def test_leader_takes_nothing_over(watch: Watch) -> None:
    watch.look(1, leads=True)
    watch.now += 10.0
    assert watch.lease.leads
    assert watch.take_over is None


def test_girder_without_leases_lets_the_scheduler_lead(watch: Watch) -> None:
    watch.lease.on_answer(None)
    assert watch.lease.leads
    assert watch.lease.leader == "b"


def test_standby_looks_more_often_than_the_leader_renews(watch: Watch) -> None:
    watch.look(1, leads=True)
    leading_s = watch.lease.interval_s
    watch.look(1)
    assert watch.lease.interval_s < leading_s < DURATION_S / 2
