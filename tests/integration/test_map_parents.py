"""The parent jobs of ``task.map``, and the end of all that a job has started."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.rest_site import ask, without_claims


class Site:
    """What the functions below do in Girder; it travels with them."""

    @staticmethod
    def record(count: int, **options: Any) -> dict[str, Any]:
        """Record a map whose jobs no real worker runs."""
        from girder.api.rest import getCurrentUser

        from girder_dask.plugin.store.maps import recording
        from girder_dask.protocol.messages import MapParent, Submission
        from girder_dask.protocol.payload import pack_call

        calls = [
            Submission(
                "my_worker_tasks:noop",
                pack_call((n,), {}),
                title=f"Child {n}",
                resources={"nowhere": 1},
            )
            for n in range(count)
        ]
        group = MapParent("Many", **options)
        parent, children = recording.record_map(group, calls, getCurrentUser())
        return {"id": str(parent["_id"]), "children": [r.spec.id for r in children]}

    @staticmethod
    def tell(job_id: str, *statuses: int, sequence: int = 1, **fields: Any) -> None:
        """Update a job as a scheduler does."""
        from girder_dask.plugin.store import updates
        from girder_dask.protocol.messages import JobUpdate

        now = time.time()
        steps = [[int(status), now] for status in statuses]
        updates.apply("test", [JobUpdate(job_id, 1, sequence, statuses=steps, **fields)])

    @staticmethod
    def load(job_id: str) -> dict[str, Any]:
        from girder_jobs.models.job import Job

        return dict(Job().load(job_id, force=True, includeLog=True))

    @classmethod
    def group(cls, job_id: str) -> dict[str, int]:
        group = cls.load(job_id)["dask"]["group"]
        return {name: group[name] for name in ("total", "done", "failed", "canceled")}

    @classmethod
    def states(cls, job_id: str) -> list[str]:
        return [JobStatus(stamp["status"]).name for stamp in cls.load(job_id)["timestamps"]]


@pytest.fixture
def inside(girder_stack, girder_user) -> Iterator[Callable[..., Any]]:
    """Run a function in Girder, as an ordinary user, while no scheduler claims jobs."""

    def run(func: Callable[..., Any], *args: Any) -> Any:
        return girder_stack.call(func, *args, user=girder_user)

    with without_claims(girder_stack):
        yield run


RUN, OK, BAD = JobStatus.RUNNING, JobStatus.SUCCESS, JobStatus.ERROR


# -- counting -----------------------------------------------------------------------------------


def test_a_parent_is_recorded_with_its_children(inside, girder_stack, girder_user):
    def record() -> Any:
        made = Site.record(3, type="counting", public=True, other_fields={"station": 7})
        parent = Site.load(made["id"])
        children = [Site.load(child) for child in made["children"]]
        return parent, children

    parent, children = inside(record)
    assert (parent["title"], parent["type"], parent["public"]) == ("Many", "counting", True)
    assert (parent["handler"], parent["station"]) == ("dask_handler", 7)
    assert str(parent["userId"]) == girder_user.id
    assert {child["parentId"] for child in children} == {parent["_id"]}
    assert [child["title"] for child in children] == ["Child 0", "Child 1", "Child 2"]
    seen = girder_user.client.get(f"job/{parent['_id']}")
    assert seen["status"] == JobStatus.QUEUED
    assert (seen["progress"]["total"], seen["progress"]["current"]) == (3, 0)
    assert seen["dask"]["group"]["total"] == 3


def test_it_starts_with_the_first_and_succeeds_with_the_last(inside):
    def run() -> Any:
        made = Site.record(3)
        seen = []
        first, second, third = made["children"]
        Site.tell(first, RUN)
        seen.append((Site.states(made["id"]), Site.group(made["id"])["done"]))
        Site.tell(first, OK, sequence=2)
        Site.tell(second, RUN, OK)
        seen.append((Site.states(made["id"]), Site.group(made["id"])["done"]))
        progress = Site.load(made["id"])["progress"]
        Site.tell(third, RUN, OK)
        seen.append((Site.states(made["id"]), Site.group(made["id"])["done"]))
        return seen, progress, Site.load(made["id"])

    seen, progress, parent = inside(run)
    assert seen == [
        (["QUEUED", "RUNNING"], 0),
        (["QUEUED", "RUNNING"], 2),
        (["QUEUED", "RUNNING", "SUCCESS"], 3),
    ]
    assert (progress["total"], progress["current"]) == (3, 2)
    assert progress["message"] == "2 of 3 jobs have ended"
    assert parent["progress"]["current"] == 3
    assert parent["log"] == []
    times = [stamp["time"] for stamp in parent["timestamps"]]
    assert times == sorted(times)


def test_all_at_once_is_a_legal_history(inside):
    def run() -> Any:
        from girder_dask.plugin.store import updates
        from girder_dask.protocol.messages import JobUpdate

        made = Site.record(5)
        news = [JobUpdate(c, 1, 1, statuses=[[2, 1.0], [3, 2.0]]) for c in made["children"]]
        updates.apply("test", news)
        once = Site.load(made["id"])
        updates.apply("test", news)  # comes twice
        return Site.states(made["id"]), Site.group(made["id"]), once == Site.load(made["id"])

    states, group, same = inside(run)
    assert states == ["QUEUED", "RUNNING", "SUCCESS"]
    assert group == {"total": 5, "done": 5, "failed": 0, "canceled": 0}
    assert same


def test_it_fails_with_its_jobs_and_names_the_first_of_them(inside, girder_stack, girder_user):
    def run() -> Any:
        made = Site.record(15)
        for n, child in enumerate(made["children"]):
            if n < 13:
                Site.tell(child, RUN, BAD, error=f"ValueError: no coins in {n}\nmore")
            else:
                Site.tell(child, RUN, OK)
        return made, Site.states(made["id"]), Site.group(made["id"])

    made, states, group = inside(run)
    assert states == ["QUEUED", "RUNNING", "ERROR"]
    assert group == {"total": 15, "done": 2, "failed": 13, "canceled": 0}
    lines = girder_stack.log(made["id"]).splitlines()
    assert lines[0] == "13 of 15 jobs failed:"
    assert len(lines) == 12
    named = {line.split()[0] for line in lines[1:11]}
    assert len(named) == 10
    assert named < set(made["children"])
    assert all("' ValueError: no coins in" in line.replace("':", "'") for line in lines[1:11])
    assert lines[11] == "  and 3 more"
    kept = ask(girder_stack, "GET", f"dask/job/{made['id']}/result", by=girder_user).json()
    assert kept["error"] == "13 of 15 jobs failed:"
    shown = girder_user.client.get(f"job/{made['id']}")["progress"]
    assert shown["message"] == "15 of 15 jobs have ended, 13 failed"


def test_what_was_not_counted_is_counted_when_a_scheduler_asks(inside):
    def run() -> Any:
        from datetime import datetime, timedelta, timezone

        from girder_jobs.models.job import Job

        from girder_dask.plugin.store.maps import parents

        made = Site.record(2)
        # As if the process had died after it wrote the jobs.
        count_soon = parents._throttle.count_soon
        parents._throttle.count_soon = lambda _: None
        try:
            for child in made["children"]:
                Site.tell(child, RUN, OK)
        finally:
            parents._throttle.count_soon = count_soon
        before = Site.states(made["id"])
        long_ago = datetime.now(timezone.utc) - timedelta(seconds=10)
        Job().collection.update_one(
            {"_id": Site.load(made["id"])["_id"]}, {"$set": {"updated": long_ago}}
        )
        parents.recount_quiet(datetime.now(timezone.utc))
        return before, Site.states(made["id"]), Site.group(made["id"])["done"]

    assert inside(run) == (["QUEUED"], ["QUEUED", "RUNNING", "SUCCESS"], 2)


def test_a_map_of_which_parts_were_never_recorded_ends(inside, girder_stack):
    def run() -> Any:
        from datetime import datetime, timedelta, timezone

        from girder_jobs.models.job import Job

        from girder_dask.plugin.store.maps import parents

        made = Site.record(3)
        parent = Site.load(made["id"])["_id"]
        # As if Girder had died while it recorded them.
        lost = Site.load(made["children"].pop())
        Job().collection.delete_one({"_id": lost["_id"]})
        began = {"dask.group.recording": datetime.now(timezone.utc)}
        Job().collection.update_one({"_id": parent}, {"$set": began})
        for child in made["children"]:
            Site.tell(child, RUN, OK)
        early = Site.states(made["id"])  # more of them may still come
        long_ago = datetime.now(timezone.utc) - timedelta(minutes=10)
        Job().collection.update_one(
            {"_id": parent}, {"$set": {"dask.group.recording": long_ago, "updated": long_ago}}
        )
        parents.recount_quiet(datetime.now(timezone.utc))
        return made["id"], early, Site.states(made["id"])

    parent, early, states = inside(run)
    assert early == ["QUEUED"]
    assert states == ["QUEUED", "RUNNING", "ERROR"]
    assert "1 of 3 jobs were never recorded" in girder_stack.log(parent)


def test_concurrent_counts_agree(inside):
    def run() -> Any:
        from concurrent.futures import ThreadPoolExecutor

        made = Site.record(40)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda child: Site.tell(child, RUN, OK), made["children"]))
        return Site.states(made["id"]), Site.group(made["id"])

    states, group = inside(run)
    assert states == ["QUEUED", "RUNNING", "SUCCESS"]
    assert group["done"] == 40


def test_jobs_that_move_while_they_are_counted_change_no_total(inside):
    def run() -> Any:
        import threading

        from bson import ObjectId
        from girder_jobs.models.job import Job

        from girder_dask.client.backend import get_backend
        from girder_dask.plugin.store.maps import parents

        made = Site.record(3000)
        parent = ObjectId(made["id"])
        jobs = Job().collection
        totals, ended, raw = set(), [], set()

        def move(*statuses: int) -> None:
            ids = [ObjectId(child) for child in made["children"]]
            for status in statuses:
                for n in range(0, len(ids), 20):
                    some = {"_id": {"$in": ids[n : n + 20]}}
                    jobs.update_many(some, {"$set": {"status": status}})

        def move_often() -> None:
            deadline = time.monotonic() + 60
            move(2)
            while len(raw) < 2 and time.monotonic() < deadline:
                move(1, 2)  # as if they were retried
            move(3)

        mover = threading.Thread(target=move_often)
        mover.start()
        while mover.is_alive():
            raw.add(parents._count([parent])[parent].total)
            parents._recount([parent])
            group = jobs.find_one({"_id": parent}, {"status": 1, "dask.group": 1})
            totals.add(group["dask"]["group"]["total"])
            if group["status"] in (3, 4, 5):
                unfinished = {"parentId": parent, "status": {"$nin": [3, 4, 5]}}
                ended.append(jobs.count_documents(unfinished))
        mover.join()
        parents._recount([parent])
        jobs.delete_many({"_id": {"$in": [ObjectId(child) for child in made["children"]]}})
        get_backend().tell_canceled(made["children"])  # since a scheduler may have them
        return len(raw), totals, ended, Site.states(made["id"])[-1], Site.group(made["id"])

    seen, totals, ended, last, group = inside(run)
    assert seen > 1, "a single count passes some twice or not at all"
    assert totals == {3000}
    assert not any(ended), "it had ended before its jobs"
    assert last == "SUCCESS"
    assert (group["total"], group["done"]) == (3000, 3000)


def test_a_map_of_nothing_succeeds(inside):
    def run() -> Any:
        return Site.states(Site.record(0)["id"])

    assert inside(run) == ["QUEUED", "RUNNING", "SUCCESS"]


def test_all_or_nothing_is_recorded(inside):
    def run() -> Any:
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job

        from girder_dask.errors import SubmissionError
        from girder_dask.plugin.store import models
        from girder_dask.plugin.store.maps import recording
        from girder_dask.protocol.messages import MapParent, Submission
        from girder_dask.protocol.payload import pack_call

        def count() -> tuple[int, int]:
            return (
                Job().collection.count_documents({}),
                models.DaskJob().collection.count_documents({}),
            )

        before = count()
        good = Submission("my_worker_tasks:noop", pack_call((), {}))
        bad = Submission(
            "my_worker_tasks:noop", pack_call((), {}), dependencies=["5f3c00000000000000000000"]
        )
        try:
            recording.record_map(MapParent("Many"), [good, bad], getCurrentUser())
        except SubmissionError as e:
            return str(e), count() == before
        return "", False

    told, same = inside(run)
    assert "There is no job 5f3c" in told
    assert same


def test_counting_uses_an_index(inside):
    def run() -> list[str]:
        from datetime import datetime, timezone

        from girder_jobs.models.job import Job

        from girder_dask.plugin.store.maps import parents

        made = Site.record(30)
        jobs = Job().collection
        parent = Site.load(made["id"])["_id"]
        counted = jobs.database.command(
            "explain",
            {"aggregate": "job", "pipeline": parents.counting_pipeline([parent]), "cursor": {}},
            verbosity="queryPlanner",
        )
        quiet = {"dask.group.open": True, "updated": {"$lt": datetime.now(timezone.utc)}}
        failed = {"parentId": parent, "status": 4}
        plans = [counted, jobs.find(quiet).explain(), jobs.find(failed).explain()]
        return [str(plan) for plan in plans]

    for plan, name in zip(
        inside(run), ("dask_children", "dask_groups", "dask_children"), strict=True
    ):
        assert f"'indexName': '{name}'" in plan
        assert "COLLSCAN" not in plan


def test_a_parent_is_never_handed_to_a_scheduler(inside):
    def run() -> Any:
        from girder_dask.plugin.store import claims, updates

        made = Site.record(1)
        claimed = {spec.id for spec in claims.claim("greedy", 10_000).specs}
        news = updates.Verdicts
        Site.tell(made["id"], RUN, OK)  # a scheduler that thinks it had it
        return made["id"] in claimed, Site.states(made["id"]), news is not None

    handed, states, _ = inside(run)
    assert not handed
    assert states == ["QUEUED"]


# -- cancel -------------------------------------------------------------------------------------


def test_cancel_of_the_parent_cancels_all(inside, girder_stack, girder_user):
    def record() -> Any:
        made = Site.record(4)
        Site.tell(made["children"][0], RUN)
        Site.tell(made["children"][1], RUN, OK)
        return made

    made = inside(record)
    canceled = girder_user.client.put(f"job/{made['id']}/cancel")
    assert canceled["status"] == JobStatus.CANCELING
    at_work, done, *waiting = made["children"]
    assert girder_stack.job(at_work)["status"] == JobStatus.CANCELING
    assert girder_stack.job(done)["status"] == JobStatus.SUCCESS
    assert {girder_stack.job(job)["status"] for job in waiting} == {JobStatus.CANCELED}

    def end() -> Any:
        Site.tell(at_work, JobStatus.CANCELED, sequence=2)
        return Site.states(made["id"]), Site.group(made["id"])

    states, group = inside(end)
    assert states == ["QUEUED", "RUNNING", "CANCELING", "CANCELED"]
    assert group == {"total": 4, "done": 1, "failed": 0, "canceled": 3}


def test_a_parent_of_which_nothing_runs_is_canceled_at_once(inside, girder_user):
    made = inside(lambda: Site.record(3))
    canceled = girder_user.client.put(f"job/{made['id']}/cancel")
    assert canceled["status"] == JobStatus.CANCELED
    again = girder_user.client.put(f"job/{made['id']}/cancel")
    assert again["status"] == JobStatus.CANCELED


def test_a_thousand_children_are_canceled_quickly_and_told_in_one_call(inside):
    def run() -> Any:
        from girder_jobs.models.job import Job

        from girder_dask.client.backend import get_backend

        made = Site.record(1000)
        backend = get_backend()
        link, calls = backend._scheduler_link(), []
        cancel = link.cancel
        link.cancel = lambda ids: (calls.append(len(ids)), cancel(ids))
        started = time.thread_time()  # a busy machine takes longer, but does not compute more
        try:
            job = Job().cancelJob(Job().load(made["id"], force=True))
        finally:
            del link.cancel
        spent = time.thread_time() - started
        left = Job().collection.count_documents({"parentId": job["_id"], "status": {"$ne": 5}})
        return spent, calls, left, Site.states(made["id"])

    spent, calls, left, states = inside(run)
    assert calls == [1001]
    assert left == 0
    assert states[-1] == "CANCELED"
    assert spent < 5


def test_cancel_reaches_the_children_of_children(inside, girder_stack, girder_user):
    def record() -> Any:
        from bson import ObjectId
        from girder.api.rest import getCurrentUser

        from girder_dask.plugin.store import recording
        from girder_dask.plugin.store.maps.recording import record_map
        from girder_dask.protocol.messages import MapParent, Submission
        from girder_dask.protocol.payload import pack_call

        call = Submission("my_worker_tasks:noop", pack_call((), {}), resources={"nowhere": 1})
        user = getCurrentUser()
        (top,) = recording.record([call], user)
        (middle,) = recording.record([call], user, parent=ObjectId(top.spec.id))
        Site.tell(middle.spec.id, RUN, OK)  # has ended, what it started has not
        group, low = record_map(
            MapParent("Low"), [call, call], user, parent=ObjectId(middle.spec.id)
        )
        (other,) = recording.record([call], user)
        ids = [top.spec.id, middle.spec.id, str(group["_id"]), *(r.spec.id for r in low)]
        return [*ids, other.spec.id]

    ids = inside(record)
    girder_user.client.put(f"job/{ids[0]}/cancel")
    states = [JobStatus(girder_stack.job(job)["status"]).name for job in ids]
    assert states == ["CANCELED", "SUCCESS", "CANCELED", "CANCELED", "CANCELED", "QUEUED"]
    girder_user.client.put(f"job/{ids[-1]}/cancel")


def test_a_parent_that_is_deleted_takes_along_what_has_not_run(inside, girder_stack, girder_user):
    made = inside(lambda: Site.record(2))
    girder_user.client.delete(f"job/{made['id']}")
    assert {girder_stack.job(job)["status"] for job in made["children"]} == {JobStatus.CANCELED}


def test_a_child_that_is_deleted_is_not_waited_for(inside, girder_user):
    made = inside(lambda: Site.record(2))
    girder_user.client.delete(f"job/{made['children'][0]}")

    def end() -> Any:
        Site.tell(made["children"][1], RUN, OK)
        return Site.states(made["id"]), Site.group(made["id"])["total"]

    assert inside(end) == (["QUEUED", "RUNNING", "SUCCESS"], 1)


def test_the_deletion_of_the_last_child_at_work_ends_the_parent(inside, girder_user):
    made = inside(lambda: Site.record(2))
    inside(lambda: Site.tell(made["children"][1], RUN, OK))
    girder_user.client.delete(f"job/{made['children'][0]}")

    def look() -> Any:
        return Site.states(made["id"]), Site.group(made["id"])["total"]

    assert inside(look) == (["QUEUED", "RUNNING", "SUCCESS"], 1)


def test_a_stranger_cancels_nothing(inside, girder_stack):
    made = inside(lambda: Site.record(2))
    stranger = girder_stack.create_user()
    refused = ask(girder_stack, "PUT", f"job/{made['id']}/cancel", by=stranger)
    assert refused.status_code == 403
    assert girder_stack.job(made["children"][0])["status"] == JobStatus.QUEUED


# -- the real thing -----------------------------------------------------------------------------


def test_a_map_runs_on_workers(girder_stack, girder_user):
    def start() -> str:
        from girder_dask.client.backend import get_backend
        from girder_dask.protocol.messages import MapParent, Submission
        from girder_dask.protocol.payload import pack_call

        calls = [
            Submission("my_worker_tasks:my_task", pack_call((n,), {}), title=f"Task {n}")
            for n in range(20)
        ]
        parent, *children = get_backend().submit(calls, MapParent("Twenty"))
        assert len(children) == 20
        return str(parent["_id"])

    parent = girder_stack.call(start, user=girder_user)
    job = girder_stack.wait(parent)
    assert job["status"] == JobStatus.SUCCESS
    assert job["progress"]["current"] == 20
    states = [JobStatus(stamp["status"]).name for stamp in job["timestamps"]]
    assert states == ["QUEUED", "RUNNING", "SUCCESS"]
