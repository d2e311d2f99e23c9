"""Gives a process another version of the messages, as a release to come would have.

A directory on ``PYTHONPATH`` for the processes of a stack.
"""

import os

if version := os.environ.get("GIRDER_DASK_TEST_WIRE_VERSION"):
    from girder_dask.protocol import wire_version

    wire_version.WIRE_VERSION = int(version)
