"""A whole girder_dask on one machine: database, broker, Girder, scheduler and workers.

``girder-dask standalone``, ``girder-dask demo`` and the pytest plugin start it. Each part is a real
process and is started with the command that a deployment uses.

>>> from girder_dask.standalone import Stack
>>> Stack("/tmp/stack", workers=1).directory.name
'stack'
"""

from girder_dask.standalone.report import PlainReporter, Reporter, reporter_for
from girder_dask.standalone.stack import Stack
from girder_dask.utils.public_names import pin

__all__ = ["PlainReporter", "Reporter", "Stack", "reporter_for"]

pin(globals())
