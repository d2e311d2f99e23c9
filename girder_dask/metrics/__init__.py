"""Metrics for Prometheus that several processes share: histograms, and their text."""

from __future__ import annotations

__all__: list[str] = []
