"""``girder-dask demo``: a whole stack, and a job that counts the objects on a picture."""

from girder_dask.cli.demo.run import run_demo

__all__ = ["run_demo"]
