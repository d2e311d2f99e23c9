"""Races between storing and deleting the token of a job: no token outlives its job."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

# Those who store a token of a job, and those who end the job.
SENDERS = ("handed over", "not sent", "claimed", "claimed elsewhere", "scheduled")
ENDERS = ("canceled", "deleted", "ended by others")

# What happens between two of these, which one of both does, happens at once.
STEPS = (
    *("tokens.store", "tokens.delete_ended", "tokens.delete", "claims.claim_for_push"),
    *("claims.save", "existing_jobs.save", "job_records.store_records"),
    *("job_records.purge_ended", "job_records.close_removed", "chunks.delete"),
)


class Turns:
    """Runs the steps of two threads, S and E, one at a time in a given order."""

    def __init__(self, order: str) -> None:
        self._order = list(order)
        self._active: str | None = None
        self._done: set[str] = set()
        self._changed = threading.Condition()
        self.taken = ""
        self.errors: list[str] = []

    def next(self) -> None:
        """End a step, and wait until the next one may begin."""
        me = threading.current_thread().name
        with self._changed:
            if self._active == me:
                self._active = None
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._is_mine(me), 20), "a step is stuck"
            self._active = me
            self.taken += me
            if self._order:
                self._order.pop(0)

    def _is_mine(self, me: str) -> bool:
        while self._order and self._order[0] in self._done:
            self._order.pop(0)
        return self._active is None and (not self._order or self._order[0] == me)

    def _run(self, act: Callable[[], Any]) -> None:
        try:
            self.next()
            act()
        except Exception as e:  # noqa: BLE001 - the test looks at it
            self.errors.append(repr(e))
        finally:
            with self._changed:
                self._active = None
                self._done.add(threading.current_thread().name)
                self._changed.notify_all()

    def run(self, **acts: Callable[[], Any]) -> None:
        """Run both threads until they end."""
        threads = [
            threading.Thread(target=self._run, args=[act], name=name) for name, act in acts.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def make_job(sender: str, user: Any) -> Any:
    from datetime import datetime, timedelta, timezone

    from girder_jobs.models.job import Job

    from girder_dask.plugin.store import recording, tokens
    from girder_dask.protocol.messages import Submission
    from girder_dask.protocol.payload import pack_call

    if sender == "scheduled":
        fields = {"dask": {"task": "pkg.mod:work"}}
        return Job().createJob(
            "Work", "dask", handler="dask_handler", user=user, otherFields=fields
        )["_id"]
    call = Submission("pkg.mod:work", pack_call((), {}), user=user)
    (recorded,) = recording.record([call], tokens_later=True)
    if sender.startswith("claimed"):
        old = datetime.now(timezone.utc) - timedelta(seconds=60)
        Job().collection.update_one({"_id": recorded.job["_id"]}, {"$set": {"created": old}})
    if sender == "claimed elsewhere":
        tokens.pending.take([recorded.spec.id])
    return recorded.job["_id"]


def send(sender: str, user: Any, job: Any) -> None:
    from girder_dask.plugin import backend
    from girder_dask.plugin.store import claims, existing_jobs

    if sender == "scheduled":
        existing_jobs.queue_inactive(job, user)
    elif sender.startswith("claimed"):
        claims.claim("a scheduler", 1)
    else:
        scheduler = "a scheduler" if sender == "handed over" else None
        backend._hand_over(scheduler, [str(job["_id"])])


def end(ender: str, job: Any) -> None:
    from girder_jobs.models.job import Job

    from girder_dask.jobs import JobStatus
    from girder_dask.plugin.store import cancellation

    if ender == "canceled":
        cancellation.cancel(job["_id"])
    elif ender == "deleted":
        Job().remove(job)
    else:
        Job().updateJob(job, status=JobStatus.CANCELED)


def tokens_left(job_id: Any) -> int:
    """Return the number of tokens of an ended job, and remove the job."""
    from girder.models.token import Token
    from girder_jobs.models.job import Job

    from girder_dask.jobs import FINAL
    from girder_dask.plugin.store import cancellation, job_records

    found = Job().load(job_id, force=True)
    if found is not None and found["status"] not in FINAL:
        cancellation.cancel(job_id)  # whoever ended it was too early, and was told so
    left = Token().collection.count_documents({"dask_job": job_id})
    Job().collection.delete_one({"_id": job_id})
    job_records.delete([job_id])
    return int(left)


def interleave(sender: str, ender: str) -> dict[str, Any]:
    """Run both on a job in each order of their steps. Return the orders that left a token."""
    from girder.api.rest import getCurrentUser
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store import claims, existing_jobs, job_records, tokens
    from girder_dask.plugin.store.logs import chunks

    user, turns = getCurrentUser(), Turns("")
    modules = {"tokens": tokens, "existing_jobs": existing_jobs, "claims": claims}
    modules |= {"job_records": job_records, "chunks": chunks}

    def stepwise(call: Any) -> Any:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name in "SE":
                turns.next()
            return call(*args, **kwargs)

        return stepping

    left, orders, errors = [], set(), []
    places = [(modules[module], name) for module, name in (step.split(".") for step in STEPS)]
    originals = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, call in originals:
        setattr(module, name, stepwise(call))
    try:
        for chosen in itertools.combinations(range(6), 3):
            turns = Turns("".join("E" if n in chosen else "S" for n in range(6)))
            job_id = make_job(sender, user)
            turns.run(
                S=functools.partial(send, sender, user, Job().load(job_id, force=True)),
                E=functools.partial(end, ender, Job().load(job_id, force=True)),
            )
            orders.add(turns.taken)
            errors += turns.errors
            if tokens_left(job_id):
                left.append(turns.taken)
    finally:
        for module, name, call in originals:
            setattr(module, name, call)
    return {"left": left, "orders": sorted(orders), "errors": errors}


@pytest.mark.parametrize("ender", ENDERS)
@pytest.mark.parametrize("sender", SENDERS)
def test_no_order_of_steps_leaves_a_token(girder_stack, sender, ender):
    seen = girder_stack.call(interleave, sender, ender)
    assert seen["left"] == [], seen
    assert len(seen["orders"]) > 3, "the steps are those of the code"
    assert all("scheduled or changed by another request" in error for error in seen["errors"]), seen


def leave_behind() -> dict[str, Any]:
    """Leave tokens like processes that died, sweep, and return those that remain."""
    from datetime import datetime, timedelta, timezone

    from bson import ObjectId
    from girder.api.rest import getCurrentUser
    from girder.models.token import Token
    from girder_jobs.models.job import Job

    from girder_dask.jobs import JobStatus
    from girder_dask.plugin.store import tokens

    now = datetime.now(timezone.utc)
    cases = {
        "ended": ({"status": int(JobStatus.CANCELED), "dask": {}}, 0),
        "unfinished": ({"status": int(JobStatus.RUNNING), "dask": {"open": True}}, 60),
        "about to be scheduled": ({"status": int(JobStatus.INACTIVE), "dask": {}}, 0),
        "never scheduled": ({"status": int(JobStatus.INACTIVE), "dask": {}}, 60),
        "about to be recorded": (None, 0),
        "never recorded, or deleted": (None, 60),
    }
    names = {}
    for name, (job, age) in cases.items():
        job_id = ObjectId()
        if job is not None:
            Job().collection.insert_one({"_id": job_id, **job})
        token = tokens.build(getCurrentUser(), now - timedelta(minutes=age), job_id)
        token["expires"] = now + timedelta(days=1)
        tokens.store([token])
        names[token["_id"]] = (name, job_id)
    try:
        count = tokens.sweep(now)
        there = Token().collection.find({"_id": {"$in": list(names)}})
        plan = Token().collection.find({"dask_job": {"$exists": True}}).hint("dask_job").explain()
        return {
            "count": count,
            "there": {names[token["_id"]][0] for token in there},
            "plan": str(plan["queryPlanner"]["winningPlan"]),
        }
    finally:
        for _, job_id in names.values():
            Job().collection.delete_one({"_id": job_id})
            tokens.delete(of=[job_id])


def test_what_processes_that_died_have_left_is_swept(girder_stack):
    seen = girder_stack.call(leave_behind)
    assert seen["there"] == {"unfinished", "about to be scheduled", "about to be recorded"}
    assert seen["count"] >= 3
    assert "IXSCAN" in seen["plan"]


def is_sweeping() -> bool:
    import threading

    return any(thread.name == "girder-dask-sweeper" for thread in threading.enumerate())


def test_girder_sweeps_by_itself(girder_stack):
    assert girder_stack.call(is_sweeping)


def start_and_cancel(count: int) -> Any:
    """Start a map, and cancel it while its jobs are sent to the scheduler."""
    from girder_jobs.models.job import Job

    import girder_dask

    # No worker has what they need, so that none begins.
    result = girder_dask.task(resources={"NOWHERE": 1})(never_run).map(range(count))
    Job().cancelJob(Job().load(result.id, force=True))
    return result.id


def never_run(n: int) -> None:
    raise NotImplementedError(n)


def tokens_of_map(parent: str) -> dict[str, Any]:
    from bson import ObjectId
    from girder.models.token import Token
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store import tokens

    jobs = list(Job().collection.find({"parentId": ObjectId(parent)}, {"status": True}))
    ids = [job["_id"] for job in jobs]
    return {
        "jobs": len(ids),
        "states": {job["status"] for job in jobs},
        "pending": sum(job_id in tokens.pending for job_id in ids),
        "left": Token().collection.count_documents({"dask_job": {"$in": ids}}),
    }


def test_a_map_of_thousands_that_is_canceled_at_once_leaves_no_token(girder_stack):
    parent = girder_stack.call(start_and_cancel, 2_000)
    deadline = time.monotonic() + 120
    while True:
        seen = girder_stack.call(tokens_of_map, parent)
        if seen == {"jobs": 2_000, "states": {5}, "pending": 0, "left": 0}:
            break
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    # What was on its way to the scheduler has arrived by now, or its tokens would be pending.
    assert girder_stack.call(tokens_of_map, parent)["left"] == 0
