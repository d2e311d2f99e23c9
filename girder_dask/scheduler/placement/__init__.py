"""Placement: which workers get which tasks, besides what Dask decides."""

__all__: list[str] = []
