"""The scheduler's side: dispatch of jobs to Dask, and reports of their states to Girder."""

__all__: list[str] = []
