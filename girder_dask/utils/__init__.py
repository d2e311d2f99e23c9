"""General tools, which know no job, no Girder and no Dask."""

__all__: list[str] = []
