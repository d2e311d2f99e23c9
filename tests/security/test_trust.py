"""Trust: the author of a call decides its rights, the owner what its token may start."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.plugin.rest.reserved_fields import RESERVED_FIELDS
from girder_dask.protocol.messages import JobSpec, MapParent
from girder_dask.protocol.payload import pack_call
from girder_dask.tasks.discovery import modules_beside
from tests.integration.test_permissions import configure, make_group
from tests.support.deadline import until
from tests.support.rest_site import ask, call, read, submit
from tests.support.run_worker import Worker

ADD, ECHO, TASK = (
    "my_worker_tasks.values:add_one",
    "ported_tasks.tasks:echo",
    "my_worker_tasks:noop",
)
PICKLED = pack_call((range(3),), {})
WAITS = {"resources": {"nowhere": 1}}


@pytest.fixture(autouse=True)
def defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Restore the settings after the test."""
    yield
    if "girder_admin" in request.fixturenames:
        admin = request.getfixturevalue("girder_admin")
        for key in ("dask.submitters", "dask.allow_tasks"):
            admin.delete("system/setting", parameters={"key": key})


def start_in_girder(*, owned: bool = True) -> dict[str, str]:
    """Start a job as a plugin's route does, and wait for its token. Run it in Girder."""
    from girder.models.token import Token
    from my_worker_tasks import noop

    from girder_dask.plugin.store import recording
    from girder_dask.plugin.store.models import DaskJob
    from girder_dask.protocol.messages import Submission
    from girder_dask.protocol.payload import pack_call

    if owned:
        job_id = noop.apply_async(resources={"nowhere": 1}).job["_id"]
    else:
        plain = pack_call((), {})
        ownerless = Submission("my_worker_tasks:noop", plain, resources={"nowhere": 1})
        job_id = recording.record([ownerless], None)[0].job["_id"]
    token = DaskJob().collection.find_one({"_id": job_id})["token"]
    deadline = time.monotonic() + 20
    while Token().collection.find_one({"_id": token}) is None:  # stored when the job is sent
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return {"id": str(job_id), "token": token}


def token_of(stack: Any, job_id: str) -> str:
    return str(stack.call(read, "dask_job", job_id)["token"])


def tried(stack: Any, token: str, **more: Any) -> dict[str, int]:
    """Return what the token of a job starts: of its own package, of another, as a pickle."""
    # It is stored when the job is sent.
    until(lambda: ask(stack, "GET", "token/current", token=token).json() is not None)
    calls = {
        "own": call(ADD, 1, **WAITS),
        "other": call(ECHO, 1, **WAITS),
        "pickle": call(ADD, payload=PICKLED, **WAITS),
        "unnamed": call("this:x", **WAITS),
        **more,
    }
    return {name: submit(stack, each, token=token).status_code for name, each in calls.items()}


def test_the_token_of_a_users_job_starts_the_tasks_of_its_own_package(girder_stack, girder_user):
    parent = girder_stack.call(start_in_girder, user=girder_user)
    expected = {"own": 200, "other": 403, "pickle": 403, "unnamed": 403}
    assert tried(girder_stack, parent["token"]) == expected
    (child,) = submit(girder_stack, call(ADD, 1, **WAITS), token=parent["token"]).json()["jobs"]
    record = girder_stack.call(read, "dask_job", child["_id"])
    assert record["trusted"] is False
    # And so on, for children of children.
    token = token_of(girder_stack, child["_id"])
    assert tried(girder_stack, token) == expected
    refused = submit(girder_stack, call(ADD, payload=PICKLED), token=token).json()["message"]
    assert child["_id"] in refused
    assert "opening a pickle runs code" in refused


def test_so_does_a_map(girder_stack, girder_user):
    parent = girder_stack.call(start_in_girder, user=girder_user)
    group = MapParent("Many", other_fields={"colour": "blue"}).to_wire()
    many = submit(girder_stack, call(ADD, 1, **WAITS), group=group, token=parent["token"])
    assert many.status_code == 200, many.text
    mixed = [call(ADD, 1, **WAITS), call(ADD, payload=PICKLED)]
    refused = submit(girder_stack, *mixed, group=group, token=parent["token"])
    assert refused.status_code == 403


def test_a_task_of_a_package_starts_its_children_by_delay(girder_stack, girder_user):
    def start() -> str:
        from my_worker_tasks import starts_children

        return str(starts_children.delay([7]).id)

    job = girder_stack.wait(girder_stack.call(start, user=girder_user))
    assert job["status"] == JobStatus.SUCCESS, girder_stack.log(job["_id"])
    (child,) = girder_user.client.get("job", parameters={"userId": girder_user.id, "limit": 1})
    assert child["title"] == "Child 7"
    assert girder_stack.wait(child["_id"])["status"] == JobStatus.SUCCESS


def test_the_rights_of_the_owner_count_when_a_call_is_sent(girder_stack, girder_user, girder_admin):
    parent = girder_stack.call(start_in_girder, user=girder_user)
    group = make_group(girder_admin, girder_user)
    configure(girder_admin, "dask.submitters", group["_id"])
    assert set(tried(girder_stack, parent["token"]).values()) == {200}
    (job,) = submit(girder_stack, call(ECHO, payload=PICKLED, **WAITS), by=girder_user).json()[
        "jobs"
    ]
    token = token_of(girder_stack, job["_id"])
    assert set(tried(girder_stack, token).values()) == {200}
    girder_admin.delete(f"group/{group['_id']}/member", parameters={"userId": girder_user.id})
    # A job that they started by a pickle is one of no package.
    assert set(tried(girder_stack, token).values()) == {403}
    assert tried(girder_stack, parent["token"])["pickle"] == 403


def test_an_owner_who_is_disabled_runs_no_code(girder_stack, girder_user, girder_admin):
    group = make_group(girder_admin, girder_user)
    configure(girder_admin, "dask.submitters", group["_id"])
    parent = girder_stack.call(start_in_girder, user=girder_user)
    assert tried(girder_stack, parent["token"])["pickle"] == 200
    girder_stack.call(disable, girder_user.id)
    assert tried(girder_stack, parent["token"])["pickle"] == 403


def disable(user_id: str) -> None:
    """Disable a user. Run it in Girder."""
    from bson import ObjectId
    from girder.models.user import User

    User().collection.update_one({"_id": ObjectId(user_id)}, {"$set": {"status": "disabled"}})


def test_a_job_without_an_owner_sends_no_pickles(girder_stack):
    parent = girder_stack.call(start_in_girder, owned=False)
    # 401, as Girder has it for whoever is no user.
    expected = {"own": 200, "other": 401, "pickle": 401, "unnamed": 401}
    assert tried(girder_stack, parent["token"]) == expected


def test_what_a_user_may_start_is_no_more_for_their_jobs(girder_stack, girder_user, girder_admin):
    """A job that was started over REST starts what its owner may, and not its package."""
    configure(girder_admin, "dask.allow_tasks", [TASK])
    (job,) = submit(girder_stack, call(TASK, **WAITS), by=girder_user).json()["jobs"]
    token = token_of(girder_stack, job["_id"])
    allowed = call(TASK, **WAITS)
    assert tried(girder_stack, token, allowed=allowed) == {
        "own": 403,
        "other": 403,
        "pickle": 403,
        "unnamed": 403,
        "allowed": 200,
    }


def test_a_job_of_another_package_does_not_start_that_package(
    girder_stack, girder_user, girder_admin
):
    configure(girder_admin, "dask.allow_tasks", [ECHO])
    parent = girder_stack.call(start_in_girder, user=girder_user)
    (child,) = submit(girder_stack, call(ECHO, 1, **WAITS), token=parent["token"]).json()["jobs"]
    token = token_of(girder_stack, child["_id"])
    add = call("ported_tasks.tasks:add", 1, 2, **WAITS)
    assert tried(girder_stack, token, add=add) == {
        "own": 403,
        "other": 200,
        "pickle": 403,
        "unnamed": 403,
        "add": 403,
    }


@pytest.mark.parametrize("fields", [{"trusted": True}, {"trusted": True, "from_girder": "yes"}, {}])
def test_a_record_of_another_version_gains_nothing(girder_stack, girder_user, fields):
    def make_old(job_id: str) -> bool:
        from bson import ObjectId

        from girder_dask.plugin.store import job_records, models

        known = models.DaskJob().collection
        change = {"$unset": {"trusted": True, "from_girder": True}}
        known.update_one({"_id": ObjectId(job_id)}, change)
        if fields:
            known.update_one({"_id": ObjectId(job_id)}, {"$set": fields})
        record = known.find_one({"_id": ObjectId(job_id)})
        (spec,) = job_records.load_specs([record], {ObjectId(job_id): 1})
        return spec.trusted

    parent = girder_stack.call(start_in_girder, user=girder_user)
    assert girder_stack.call(make_old, parent["id"]) is bool(fields)
    assert set(tried(girder_stack, parent["token"]).values()) == {403}


# -- the worker ---------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    found = Worker(tmp_path)
    yield found
    found.close()


def test_the_worker_opens_no_pickle_of_those_who_may_send_none(worker, tmp_path):
    mark = tmp_path / "owned"
    error = worker.outcome(lambda: mark.write_text("x"), trusted=False)
    assert "may not run code of their own" in str(error)
    assert not mark.exists()
    assert "Traceback" not in worker.log()


def test_the_lack_of_a_word_is_no_trust():
    assert (
        JobSpec.from_wire({"version": 1, "id": "a", "attempt": 1, "task": "m:f"}).trusted is False
    )
    for trusted in (True, False):
        spec = JobSpec(id="a", attempt=1, task="m:f", trusted=trusted)
        assert json.loads(json.dumps(spec.to_wire()))["trusted"] is trusted


def test_a_package_is_what_its_entry_points_name():
    assert modules_beside("my_worker_tasks.values") == {"my_worker_tasks"}
    assert "ported_tasks.tasks" in modules_beside("ported_tasks.tasks")
    assert modules_beside("ported_tasks.tasks").isdisjoint(modules_beside("my_worker_tasks"))
    # Not named, but of the same distribution: Girder's own code may start it too.
    assert modules_beside("ported_tasks.rows") == modules_beside("ported_tasks.tasks")
    for none in ("os", "my_worker_tasks2", "my_worker", ""):
        assert modules_beside(none) == frozenset()
    assert modules_beside("girder_dask") == {"girder_dask.docker"}


def test_reserved_fields_are_known(girder_stack, girder_user):
    """A child job may set its own fields, like @task(other_fields=…), but not these."""
    parent = girder_stack.call(start_in_girder, user=girder_user)
    free = submit(
        girder_stack, call(ADD, 1, other_fields={"colour": "blue"}, **WAITS), token=parent["token"]
    )
    assert free.status_code == 200, free.text
    for name in sorted(RESERVED_FIELDS - {"parentId"}):
        refused = submit(
            girder_stack, call(ADD, 1, other_fields={name: "x"}), token=parent["token"]
        )
        assert refused.status_code == 400, name
        assert name in refused.json()["message"]
    assert ask(girder_stack, "GET", f"job/{parent['id']}", by=girder_user).status_code == 200
