"""What the containers of a run may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ContainerScope"]


@dataclass(frozen=True, slots=True)
class ContainerScope:
    """What the containers of a run may use, and whose they are.

    Attributes
    ----------
    job_id, attempt
        The job and its attempt.
    owner
        The identity of the worker's process (:mod:`girder_dask.utils.process_identity`).
    trusted
        Whether the call comes from someone who may run code of their own on the workers.
    inputs
        How the paths of the fetched inputs of the run begin.
    resources
        The resources that Dask has reserved for the job.
    """

    job_id: str
    attempt: int
    owner: str
    trusted: bool
    inputs: str
    resources: Mapping[str, float] = field(default_factory=dict)
