"""The scheduler's side: dispatches jobs to Dask and reports their states to Girder."""

__all__: list[str] = []
