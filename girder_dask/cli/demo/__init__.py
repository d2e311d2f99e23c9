"""``girder-dask demo``: a whole stack, a real picture, and a job that counts what is on it."""

from girder_dask.cli.demo.run import run_demo

__all__ = ["run_demo"]
