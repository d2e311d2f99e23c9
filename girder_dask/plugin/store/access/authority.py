"""Authority under which calls become jobs, and what the tokens of these jobs may start.

A call by code inside Girder may do what that code could do: its function, its arguments and its
hooks are Girder's. The token of the job is weaker, since everything that runs as the job can read
it. It may start what the owner of the job may start at that time. The token of a job that Girder's
code has started may also start plain calls of tasks of the same package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from girder.models.group import Group
from girder.models.user import User

from girder_dask.plugin import settings
from girder_dask.plugin.store import job_records
from girder_dask.tasks import discovery

__all__ = ["IN_GIRDER", "Authority", "may_run_code", "of_job", "of_user", "who_may"]


@dataclass(frozen=True, slots=True)
class Authority:
    """Authority under which calls become jobs.

    Attributes
    ----------
    runs_code
        True if the jobs may run code of their own on the cluster. The pickled calls, tasks and
        hooks of all other jobs are confined on the workers.
    in_girder
        True for code inside Girder.
    modules
        The modules with tasks of the package of the job that starts the calls. The token of that
        job may start these tasks with plain arguments.
    girder_api_url
        Girder's REST API as code inside Girder gave it for the job that starts the calls.
    """

    runs_code: bool = False
    in_girder: bool = False
    modules: frozenset[str] = frozenset()
    girder_api_url: str | None = None

    def may_start_package_of(self, task: str) -> bool:
        """Return True if the token of a job of this task may start the tasks of its package.

        It may not if the job that starts it is of another package, so that no job may start more
        than the job that has started it.
        """
        return self.in_girder or self.is_in_same_package(task)

    def is_in_same_package(self, task: str) -> bool:
        """Return True if a task is in the package of the job that starts it."""
        return discovery.is_among(task.partition(":")[0], self.modules)

    def address(self, given: str | None) -> str | None:
        """Return the address of Girder for a call that names ``given`` as its address."""
        return given if self.in_girder and given else self.girder_api_url


#: The authority of code inside Girder.
IN_GIRDER = Authority(runs_code=True, in_girder=True)


def of_user(user: Mapping[str, Any]) -> Authority:
    """Return the authority of a user who sends a request."""
    return Authority(runs_code=may_run_code(user))


def of_job(job: Mapping[str, Any]) -> Authority:
    """Return the authority of a job's token: what its owner may do now, whoever started it."""
    owner = User().load(job["userId"], force=True) if job.get("userId") else None
    origin = job_records.load_origin(job["_id"])
    modules: frozenset[str] = frozenset()
    if origin.from_girder:
        modules = discovery.modules_beside(origin.task.partition(":")[0])
    return Authority(
        runs_code=owner is not None and may_run_code(owner),
        modules=modules,
        girder_api_url=origin.girder_api_url,
    )


def may_run_code(user: Mapping[str, Any]) -> bool:
    """Return True if a user may run code of their own on the cluster."""
    if user.get("status", "enabled") != "enabled":
        return False
    group = settings.submitters()
    return bool(user.get("admin")) or (group is not None and group in user.get("groups", ()))


def who_may() -> str:
    """Return in words who may run code of their own."""
    group_id = settings.submitters()
    group = Group().load(group_id, force=True) if group_id is not None else None
    if group is None:
        return "site administrators"
    name = f"the group '{group['name']}'" if group.get("public") else "a group of users"
    return f"site administrators and {name}"
