"""Arguments that stand for something in Girder, and what is done with results.

A transform is given to ``delay()`` in place of a value. On the worker it becomes the
value: ``GirderFileId(id)`` the path of a file. A result transform is given in
``girder_result_hooks`` and gets what the function returned, or the element at its place.
Both are found in nested lists, tuples and dicts; hooks have to be nested as the result is.

Those of ``girder_worker`` and ``girder_worker_utils``, and anything else with
``transform()`` and ``cleanup()``, work too.
"""

from __future__ import annotations

from girder_dask.files.base import ResultTransform, Transform, explain
from girder_dask.files.inputs import (
    GirderFileId,
    GirderFileIdAllowDirect,
    GirderFolderId,
    GirderItemId,
    TemporaryDirectory,
)
from girder_dask.files.outputs import (
    GirderItemMetadata,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
    GirderUploadToItem,
)
from girder_dask.protocol.transform_types import detached, is_transform, register
from girder_dask.utils.public_names import pin

__all__ = [
    "GirderFileId",
    "GirderFileIdAllowDirect",
    "GirderFolderId",
    "GirderItemId",
    "GirderItemMetadata",
    "GirderUploadJobArtifact",
    "GirderUploadToFolder",
    "GirderUploadToItem",
    "ResultTransform",
    "TemporaryDirectory",
    "Transform",
    "detached",
    "explain",
    "is_transform",
]

register(
    GirderFileId,
    GirderFileIdAllowDirect,
    GirderFolderId,
    GirderItemId,
    GirderItemMetadata,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
    GirderUploadToItem,
    TemporaryDirectory,
)

pin(globals())
