"""``python -m girder_dask.cli``: the command ``girder-dask``."""

from girder_dask.cli import main

__all__: list[str] = []

main()
