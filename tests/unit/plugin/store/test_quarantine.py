"""How often the queue is scanned for malformed documents."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from girder_dask.plugin.store import quarantine


@pytest.mark.parametrize(("took_s", "rest_s"), [(0.0, 10.0), (0.1, 10.0), (2.0, 100.0)])
def test_scan_rests_longer_the_longer_it_takes(
    monkeypatch: pytest.MonkeyPatch, took_s: float, rest_s: float
) -> None:
    now, scans = [1000.0], []

    def scan_all() -> None:
        scans.append(now[0])
        now[0] += took_s

    monkeypatch.setattr(quarantine, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(quarantine, "_scan_all", scan_all)
    monkeypatch.setattr(quarantine, "_next_scan", 0.0)
    quarantine.scan()
    ended = now[0]
    now[0] = ended + rest_s - 0.01
    quarantine.scan()
    assert scans == [1000.0]
    now[0] = ended + rest_s
    quarantine.scan()
    assert scans == [1000.0, ended + rest_s]


def test_scan_that_fails_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now, scans = [1000.0], []

    def fail() -> None:
        scans.append(now[0])
        raise RuntimeError("no database")

    monkeypatch.setattr(quarantine, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(quarantine, "_scan_all", fail)
    monkeypatch.setattr(quarantine, "_next_scan", 0.0)
    with pytest.raises(RuntimeError):
        quarantine.scan()
    quarantine.scan()
    assert scans == [1000.0]
    now[0] += 10.0
    with pytest.raises(RuntimeError):
        quarantine.scan()
    assert scans == [1000.0, 1010.0]
