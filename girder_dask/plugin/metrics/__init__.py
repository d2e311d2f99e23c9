"""Metrics of the jobs of this Girder, the same whichever of its processes answers.

Each process counts in memory and adds its counts to the database every few seconds
(:mod:`~girder_dask.plugin.metrics.flusher`). A scrape reads the sums.
"""

from __future__ import annotations

__all__: list[str] = []
