"""Tasks for girder_worker: plain and bound, in chains and groups, that retry, fail and wait."""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from celery import chord, group
from celery.exceptions import SoftTimeLimitExceeded
from girder_worker.app import app
from girder_worker.utils import girder_job
from girder_worker.utils.transforms.girder_io import GirderFileId


@app.task
def add(x: int, y: int) -> int:
    """Return the sum."""
    return x + y


@girder_job(title="Fibonacci", type="numbers", public=True, otherFields={"meta": {"of": "tests"}})
@app.task(bind=True)
def fibonacci(self: Any, n: int) -> int:
    """Return a Fibonacci number, and report progress."""
    a, b = 0, 1
    for i in range(n):
        a, b = b, a + b
        self.job_manager.write(f"step {i}: {a}\n")
        self.job_manager.updateProgress(total=n, current=i + 1, message=f"at {i}")
    print(f"the number is {a}")
    return a


@girder_job(title="Speak")
@app.task(bind=True)
def speaks(self: Any, name: str, lines: int) -> None:
    """Write lines by all means that a task has, also from a thread of its own."""
    logger = logging.getLogger(f"their_tasks.{name}")

    def write(n: int) -> None:
        print(f"{name} prints {n}")

    for n in range(lines):
        self.job_manager.write(f"{name} writes {n}\n")
        sys.stderr.write(f"{name} complains {n}\n")
        logger.warning("%s logs %d", name, n)
        thread = threading.Thread(target=write, args=(n,))
        thread.start()
        thread.join()


@app.task
def fails(message: str) -> None:
    """Raise a RuntimeError."""
    raise RuntimeError(message)


@app.task(bind=True)
def waits(self: Any, _given: Any = None, seconds: float = 60.0) -> str:
    """Wait until the job is canceled, or the time is over."""
    print("waiting")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if self.canceled:
            print("canceled")
            return "canceled"
        time.sleep(0.05)
    return "waited"


@app.task
def sleeps(seconds: float) -> None:
    """Sleep without a look at anything."""
    print("sleeping")
    time.sleep(seconds)


@app.task
def takes_token(token: str) -> int:
    """Return the length of a token."""
    return len(token)


@app.task
def size(path: str) -> int:
    """Return the size of a file."""
    return Path(path).stat().st_size


@app.task(bind=True)
def says_where(self: Any, _given: Any = None, path: str | None = None) -> None:
    """Print the name of the worker, and wait for a file if one is named."""
    print(self.request.hostname)
    while path is not None and not Path(path).exists():
        time.sleep(0.05)


@app.task
def writes_file(path: str, text: str) -> str:
    """Write a file, and return its path."""
    Path(path).write_text(text)
    return path


@app.task(bind=True)
def looks_up(self: Any, path: str) -> str:
    """Return the id of what a path of Girder leads to."""
    return str(self.girder_client.get("resource/lookup", {"path": path})["_id"])


@app.task(bind=True)
def user_of(self: Any) -> dict[str, Any]:
    """Return what the job's client and request say."""
    me = self.girder_client.get("user/me")
    info = self.request.jobInfoSpec
    return {
        "user": me["login"] if me else None,
        "reference": info["reference"],
        "has_token": bool(info["headers"]),
        "retries": self.request.retries,
        "same_address": self.request.girder_api_url == self.girder_client.urlBase.rstrip("/"),
    }


@app.task(bind=True)
def request_of(self: Any) -> dict[str, Any]:
    """Return parts of the request."""
    info = self.request.jobInfoSpec
    return {
        "reference": info["reference"],
        "has_token": bool(info["headers"]),
        "api_url": self.request.girder_api_url,
        "hostname": self.request.hostname,
        "retries": self.request.retries,
    }


@app.task(bind=True)
def whole_request(self: Any) -> dict[str, Any]:
    """Return what Celery takes from the request."""
    hooks = getattr(self.request, "girder_result_hooks", None)
    return {
        "id": self.request.id,
        "task": self.request.task,
        "delivery_info": self.request.delivery_info,
        "hooks": hooks,
    }


@app.task(bind=True)
def ends_job(self: Any, status: int) -> None:
    """Set the final state of the job."""
    self.job_manager.updateStatus(status)


@app.task(bind=True, max_retries=5)
def tries_again(self: Any, times: int, countdown: float = 0.2) -> int:
    """Ask to be tried again until that has happened several times."""
    print(f"try {self.request.retries}")
    if self.request.retries < times:
        raise self.retry(countdown=countdown)
    return int(self.request.retries)


@app.task(bind=True)
def tries_with(self: Any, options: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
    """Ask to be tried again twice, the first time with other options, and return what came of it.

    The third run sleeps.
    """
    if self.request.retries < 2:
        raise self.retry(countdown=0, **(options if self.request.retries == 0 else {}))
    print("third")
    ended = "slept"
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.02)
    except SoftTimeLimitExceeded:
        ended = "soft limit"
    info = self.request.delivery_info
    where = {"worker": _worker_name(), "queue": info["routing_key"]}
    return {**where, "ended": ended, "priority": info["priority"]}


@app.task(bind=True, max_retries=1)
def gives_up(self: Any) -> None:
    """Ask to be tried again once, then fail with the error that was the reason."""
    try:
        raise ValueError("out of reach")
    except ValueError as e:
        raise self.retry(exc=e, countdown=0) from e


@app.task(bind=True)
def doubles_until(self: Any, n: int) -> int:
    """Ask to be tried again with the double, until that is more than ten."""
    if n <= 10:
        raise self.retry(args=(2 * n,), countdown=0)
    return n


@app.task(bind=True)
def is_replaced(self: Any, x: int) -> Any:
    """Have another task continue in the place of this one."""
    raise self.replace(add.s(x, 100))


@app.task(bind=True)
def starts_child(self: Any, n: int) -> str:
    """Start a task from a task."""
    child = fibonacci.delay(n, girder_job_title="The child", girder_job_type="children")
    return str(child.id)


@app.task(bind=True)
def is_replaced_by_parent(self: Any, n: int) -> Any:
    """Have a task continue in the place of this one that starts another."""
    raise self.replace(starts_child.s(n))


@app.task(bind=True)
def starts_by_name(self: Any) -> str:
    """Start a task by its name."""
    return str(app.send_task("their_tasks.tasks.add", (1, 2)).id)


@app.task(bind=True)
def starts_group(self: Any) -> list[str]:
    """Start several tasks at once."""
    return [str(each.id) for each in group(add.s(n, n) for n in range(3)).apply_async().results]


@app.task(bind=True)
def starts_chord(self: Any) -> str:
    """Start several tasks, and one with all their results."""
    return str(chord([add.s(n, n) for n in range(3)])(total.s()).id)


@app.task(bind=True)
def starts_with_file(self: Any, file_id: str) -> str:
    """Start a task whose argument is a transform."""
    return str(size.delay(GirderFileId(file_id, gc=self.girder_client)).id)


@app.task(bind=True, max_retries=1)
def sends_with_one_id(self: Any, task_id: str) -> None:
    """Send calls with the same id: one that is repeated, others, and others in a second run."""
    first = self.request.retries == 0
    for args in [(1, 2), (1, 2), (3, 4)] if first else [(5, 6), (1, 2), (7, 8)]:
        add.apply_async(args, task_id=task_id)
    if first:
        raise self.retry(countdown=0)


@app.task
def total(numbers: list[int]) -> int:
    """Return the sum of a list."""
    return sum(numbers)


@app.task
def empties(values: list[Any]) -> int:
    """Remove what is in a list, and return how much that was."""
    number = len(values)
    values.clear()
    return number


@app.task
def total_of_keys(values: Any) -> int:
    """Return the sum of the numbers among the keys, which messages keep as they are."""
    return sum(key if isinstance(key, int) else key[0] for key in values)


class Scale:
    """An object of the package's own among the arguments."""

    def __init__(self, factor: int) -> None:
        self.factor = factor


@app.task
def scaled(n: int, scale: Scale) -> int:
    """Return a product."""
    return n * scale.factor


@app.task
def note_failure(task_id: str) -> str:
    """Return which task has failed."""
    return f"{task_id} failed"


@app.task
def collect(*results: Any) -> list[Any]:
    """Return the arguments."""
    return list(results)


def _worker_name() -> str:
    """Return the name of the Dask worker. No task of a site looks for that."""
    from distributed import get_worker

    return str(get_worker().name)


@app.task(queue="local")
def locally() -> str:
    """Return the name of the worker that serves the queue."""
    return _worker_name()


@app.task
def worker_name() -> str:
    """Return the name of the worker."""
    return _worker_name()


@app.task(acks_late=True)
def at_least_once(path: str) -> int:
    """Count the runs in a file, and wait in the first one."""
    counter = Path(path)
    runs = len(counter.read_text().splitlines()) + 1 if counter.exists() else 1
    with counter.open("a") as file:
        file.write("run\n")
    if runs == 1:
        time.sleep(60)
    return runs


@app.task(soft_time_limit=1)
def softly_limited() -> str:
    """Wait for the soft time limit, and clean up."""
    from celery.exceptions import SoftTimeLimitExceeded

    try:
        while True:
            time.sleep(0.05)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task(bind=True)
def shows(self: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Write the arguments into the log and the progress, and return them."""
    print(args, kwargs)
    self.job_manager.updateProgress(message=f"{args} {kwargs}")
    if kwargs.get("fails"):
        raise RuntimeError(f"{args} {kwargs}")
    return [*args, kwargs]


def _tally(path: str, number: int, seconds: float) -> int:
    """Note a run in a file, and print a line with its name each tenth of a second."""
    run = uuid.uuid4().hex[:8]
    with Path(path).open("a") as out:
        out.write(f"{number} {run}\n")
    for n in range(round(seconds * 10)):
        print(f"run {run} line {n}")
        time.sleep(0.1)
    return number


@app.task(acks_late=True)
def tally_late(path: str, number: int, seconds: float) -> int:
    """Note a run. A task whose worker is lost runs again."""
    return _tally(path, number, seconds)


@app.task
def tally_once(path: str, number: int, seconds: float) -> int:
    """Note a run, at most one."""
    return _tally(path, number, seconds)


@app.task
def sleeps_and_adds(x: int, y: int, seconds: float) -> int:
    """Return the sum after some time."""
    time.sleep(seconds)
    return x + y


@app.task(bind=True)
def starts_child_that_waits(self: Any) -> None:
    """Start a task that waits, and wait as well, without a look at anything."""
    waits.delay()
    print("started")
    time.sleep(60)


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=3, default_retry_delay=0)
def retries_by_itself(self: Any, times: int) -> int:
    """Raise an error that has the task tried again, several times."""
    if self.request.retries < times:
        raise ConnectionError("away")
    return int(self.request.retries)


@app.task(bind=True)
def family(self: Any) -> dict[str, Any]:
    """Return what the request says of the calls above."""
    names = ("id", "root_id", "parent_id", "group", "task", "lang")
    return {name: getattr(self.request, name) for name in names}


@app.task(bind=True)
def awaits_child(self: Any) -> Any:
    """Return the value of a task that this one starts, as some do against Celery's advice."""
    return add.delay(20, 22).get(timeout=30, disable_sync_subtasks=False)


@app.task
def calls_here() -> list[Any]:
    """Call other tasks in this process."""
    return [add(1, 2), add.apply((3, 4)).get(), add.s(5, 6)()]


@app.task(ignore_result=True, rate_limit="10/s", expires=60)
def with_options() -> str:
    """Return a text."""
    return "done"
