"""Reasons why workers were lost."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import pytest

from girder_dask.scheduler import worker_losses
from girder_dask.scheduler.worker_losses import WorkerLosses
from girder_dask.tls import EXPIRY_METRIC

A, B = "tcp://10.0.0.7:4312", "tcp://10.0.0.8:4312"
MIB = 1 << 20


@dataclass
class DaskWorker:
    memory_limit: int = 1000 * MIB
    metrics: dict[str, float] = field(default_factory=dict)


def too_large(known: WorkerLosses, worker: str = A) -> list[str]:
    return known.on_event("worker-restart-memory", {"worker": worker, "rss": 960 * MIB, "pid": 7})


def test_reason_is_memory_if_a_nanny_ended_the_worker() -> None:
    known = WorkerLosses()
    known.on_joined(A, DaskWorker())
    assert too_large(known) == [A]
    assert known.reason(A) == (
        "its nanny ended it for using too much memory, 0.94 GiB of its limit of 0.98 GiB"
    )
    assert known.reason(B) == ""


def test_reason_is_reset_when_a_worker_joins_again() -> None:
    known = WorkerLosses()
    too_large(known)
    known.on_joined(A, DaskWorker())
    assert known.reason(A) == ""


def test_reason_is_silence_if_the_scheduler_gave_it_up() -> None:
    known = WorkerLosses()
    event = {"action": "worker-ttl-timed-out", "workers": [A, B], "ttl": 300.0}
    assert known.on_event("scheduler", event) == [A, B]
    assert known.reason(A) == known.reason(B) == "it was silent for more than 300 s"


@pytest.mark.parametrize(
    ("topic", "message"),
    [("all", {"worker": A}), ("scheduler", {"action": "retire"}), ("worker-restart-memory", "x")],
)
def test_other_events_explain_nothing(topic: str, message: object) -> None:
    known = WorkerLosses()
    assert known.on_event(topic, message) == []
    assert known.reason(A) == ""


def test_reason_of_a_sudden_death_is_the_last_memory_use() -> None:
    known = WorkerLosses()
    worker = DaskWorker()
    known.on_joined(A, worker)
    assert known.reason(A) == ""
    worker.metrics = {"memory": 500 * MIB}
    assert known.reason(A) == ""
    worker.metrics = {"memory": 900 * MIB}
    assert known.reason(A) == (
        "it may have run out of memory, as it was last seen to use 900.00 MiB of its limit of "
        "0.98 GiB"
    )
    worker.memory_limit = 0  # it has none
    assert known.reason(A) == ""


def test_a_worker_that_is_gone_is_remembered_without_the_state_that_dask_had_of_it() -> None:
    known = WorkerLosses()
    worker = DaskWorker(metrics={"memory": 900 * MIB})
    state = weakref.ref(worker)
    known.on_joined(A, worker)
    known.on_left(A)
    del worker
    gc.collect()
    assert state() is None
    assert "900.00 MiB of its limit" in known.reason(A)


def test_remembered_workers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_losses, "_MAX_WORKERS", 2)
    known = WorkerLosses()
    for n in range(4):
        known.on_joined(f"w{n}", DaskWorker(metrics={"memory": 990 * MIB}))
        too_large(known, f"w{n}")
    assert [bool(known.reason(f"w{n}")) for n in range(4)] == [False, False, True, True]


def test_refusal_names_workers_that_end_before_they_are_ready() -> None:
    known = WorkerLosses()
    known.on_joined(A, DaskWorker(metrics={EXPIRY_METRIC: 0.0}))
    known.on_left(A)
    known.on_left(B)
    assert known.refusal == ""
    known.on_joined(A, DaskWorker())
    known.on_left(A)
    assert known.refusal.startswith("those that try end before they are ready; see the log of one")
    known.on_refused("those that try are refused: for a reason")
    known.on_joined(A, DaskWorker())
    known.on_left(A)
    assert known.refusal == "those that try are refused: for a reason"


def test_refusal_forgets_workers_that_were_connected_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_losses, "_START_S", 0.0)
    known = WorkerLosses()
    known.on_joined(A, DaskWorker())
    known.on_left(A)
    assert known.refusal == ""
