"""Metrics of the scheduler, which Dask serves at ``/metrics`` with its own."""

from __future__ import annotations

__all__: list[str] = []
