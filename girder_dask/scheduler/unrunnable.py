"""Why Dask has no worker for a task."""

from __future__ import annotations

from collections.abc import Mapping

from distributed import Scheduler

__all__ = ["shortage"]


def shortage(scheduler: Scheduler, needs: Mapping[str, float]) -> str:
    """Say why there is no worker for what needs some resources; empty if there is one."""
    if not scheduler.workers:
        return "no worker is connected to the Dask scheduler"
    fit = set(scheduler.workers)
    for name, amount in needs.items():
        offers = scheduler.resources.get(name, {})
        fit = {worker for worker in fit if offers.get(worker, 0.0) >= amount}
    number = len(scheduler.workers)
    workers = "the one worker does not have" if number == 1 else f"none of the {number} workers has"
    if not fit:
        asked = " and ".join(f"{name}={amount:g}" for name, amount in needs.items())
        return f"{workers} the resources {asked} (dask worker --resources)"
    if not any(ws.address in fit for ws in scheduler.running):
        return (
            f"no worker that could run it takes tasks now: {len(fit)} of them are paused, since "
            "their memory is nearly full, or are leaving"
        )
    return ""
