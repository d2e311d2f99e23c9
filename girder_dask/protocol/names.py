"""Names that several processes share: headers, scopes, plugins and annotations."""

from __future__ import annotations

__all__ = [
    "ATTEMPT_ANNOTATION",
    "ATTEMPT_HEADER",
    "CELERY_PLUGIN_NAME",
    "GPU_RESOURCE",
    "JOB_HEADER",
    "KIND_HEADER",
    "METRICS_KEY_NAME",
    "METRICS_SCOPE",
    "PLUGIN_NAME",
    "SCHEDULER_SCOPE",
    "SUBMIT_SCOPE",
    "TOKEN_HEADER",
    "UPLOAD_HEADER",
]

#: The name of the plugin of workers that imports girder_worker's tasks.
CELERY_PLUGIN_NAME = "girder-dask-celery"

#: The Dask resource that counts GPUs.
GPU_RESOURCE = "GPU"

#: The name of the plugins of girder_dask in the scheduler, workers and nannies.
PLUGIN_NAME = "girder-dask"

#: The header with a Girder token.
TOKEN_HEADER = "Girder-Token"  # noqa: S105 - its name

#: The header of a download's redirect that names the kind of its target.
KIND_HEADER = "Girder-Dask-Redirect"

#: The only scope of the scheduler's credential.
SCHEDULER_SCOPE = "dask.jobs.update"

#: The only scope of the key with which Prometheus reads the metrics of Girder.
METRICS_SCOPE = "dask.metrics.read"

#: The name of that key in the list of its owner's keys.
METRICS_KEY_NAME = "girder_dask metrics"

#: The header that names the job of an attempt. Several jobs may share a token.
JOB_HEADER = "Girder-Dask-Job"

#: The header with the number of the attempt that uploads a file.
ATTEMPT_HEADER = "Girder-Dask-Attempt"

#: The header with the unique name of an upload.
UPLOAD_HEADER = "Girder-Dask-Upload"

#: The scope of tokens that may start the jobs that their user may start.
SUBMIT_SCOPE = "dask.jobs.submit"

#: The annotation of a Dask task that runs again: the number of its attempt, or 0 if no further run
#: may begin.
ATTEMPT_ANNOTATION = "girder_attempt"
