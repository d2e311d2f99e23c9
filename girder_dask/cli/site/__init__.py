"""``girder-dask init``: the files of a site, for each role on each host."""

from girder_dask.cli.site.command import init

__all__ = ["init"]
