"""Names that two processes must agree on."""

from __future__ import annotations

__all__ = [
    "ATTEMPT_ANNOTATION",
    "ATTEMPT_HEADER",
    "JOB_HEADER",
    "KIND_HEADER",
    "PLUGIN_NAME",
    "SCHEDULER_SCOPE",
    "SUBMIT_SCOPE",
    "TOKEN_HEADER",
    "UPLOAD_HEADER",
]

#: The plugins of girder_dask in a scheduler, in workers and in nannies.
PLUGIN_NAME = "girder-dask"

#: The header that holds a token of Girder.
TOKEN_HEADER = "Girder-Token"  # noqa: S105 - its name

#: The header in which Girder says what a redirect of a download leads to.
KIND_HEADER = "Girder-Dask-Redirect"

#: The only scope of the credential.
SCHEDULER_SCOPE = "dask.jobs.update"

#: The header that names the job of the attempt. Its token may be one that other jobs have too.
JOB_HEADER = "Girder-Dask-Job"

#: The header that holds the number of the attempt which uploads a file.
ATTEMPT_HEADER = "Girder-Dask-Attempt"

#: The header that holds the name of an upload, which no other upload has.
UPLOAD_HEADER = "Girder-Dask-Upload"

#: The scope of tokens that may start jobs, as far as their user may.
SUBMIT_SCOPE = "dask.jobs.submit"

#: The annotation of a Dask task that runs again, with the number of its attempt; 0 if no run of
#: it is to begin any more.
ATTEMPT_ANNOTATION = "girder_attempt"
