"""Transforms: arguments that stand for data in Girder, and hooks that store results there.

A transform is an argument of ``delay()`` that the worker replaces by a value:
``GirderFileId(id)`` by the path of a file. A result transform in ``girder_result_hooks`` receives
the value of the function, or the element at its position. Both may be nested in lists, tuples and
dicts; hooks are nested like the result.

Transforms of ``girder_worker`` and ``girder_worker_utils``, and any object with ``transform()`` and
``cleanup()``, work as well.
"""

from __future__ import annotations

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
from girder_dask.files.transform_base import ResultTransform, Transform, explain
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
