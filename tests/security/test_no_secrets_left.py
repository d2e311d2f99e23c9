"""A whole run on a separate stack, searched for each token and key that was created in it."""

from __future__ import annotations

import base64
import gzip
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pymongo
import pytest
import requests
from bson.raw_bson import RawBSONDocument
from distributed import Client

import girder_dask
from girder_dask.jobs import JobStatus
from girder_dask.testing.stack import TestStack

# Where secrets are meant to be, each of them readable by its owner alone.
KEPT = {"credential", "stack.json", "state.json"}
# The database's own files hold what its collections do.
FOREIGN = {"mongo"}


# -- in Girder --------------------------------------------------------------------------------


def watch() -> None:
    """Record all tokens and keys that this Girder process creates from now on."""
    import builtins

    from girder.models.api_key import ApiKey
    from girder.models.token import Token

    from girder_dask.plugin.store import tokens

    made = builtins.made_secrets = set()
    made |= {token["_id"] for token in Token().find()}
    made |= {key["key"] for key in ApiKey().find()}
    store, save, save_key = tokens.store, Token.save, ApiKey.save

    def storing(documents: Any) -> None:
        made.update(document["_id"] for document in documents)
        store(documents)

    def saving(self: Any, document: Any, *args: Any, **kwargs: Any) -> Any:
        saved = save(self, document, *args, **kwargs)
        made.add(saved["_id"])
        return saved

    def saving_key(self: Any, document: Any, *args: Any, **kwargs: Any) -> Any:
        saved = save_key(self, document, *args, **kwargs)
        made.add(saved["key"])
        return saved

    tokens.store, Token.save, ApiKey.save = storing, saving, saving_key


def made_in_girder() -> set[str]:
    import builtins

    return set(builtins.made_secrets)


def start_all(folder: str, seed: str) -> dict[str, str]:
    """Start jobs of all kinds that end by themselves."""
    import my_worker_tasks as tasks
    from my_worker_tasks.leaks import WAYS, leaks

    from girder_dask.transforms import GirderUploadJobArtifact, GirderUploadToFolder

    hooks = [GirderUploadToFolder(folder), GirderUploadJobArtifact()]
    jobs = {way: leaks.delay(way) for way in WAYS}
    jobs |= {
        "succeeds": tasks.noop.delay(),
        "fails": tasks.fails.delay("no coins"),
        "prints seed": tasks.my_task.delay(seed),
        "pushes": tasks.make_files.apply_async([2], girder_result_hooks=hooks),
        "isolated": leaks.apply_async(["raises with response"], isolation="process"),
    }
    return {name: str(job.id) for name, job in jobs.items()}


def start_long() -> dict[str, str]:
    """Start jobs that run until they are canceled, and some that wait."""
    import my_worker_tasks as tasks

    code = "for _ in range(6000): time.sleep(0.1)"
    jobs = {
        "thread": tasks.process.delay(code),
        "process": tasks.process.apply_async([code], isolation="process"),
        "queued": tasks.noop.apply_async(resources={"NOWHERE": 1}),
        "map": tasks.process.map([code] * 20),
    }
    return {name: str(job.id) for name, job in jobs.items()}


def logs_of_all() -> bytes:
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.logs import chunks

    jobs = Job().collection.find({}, {"_id": True})
    return b"".join(b"".join(chunks.load(job["_id"]).read()) for job in jobs)


# -- where is searched ------------------------------------------------------------------------


def documents(stack: Any) -> bytes:
    """Return all of the database except tokens, keys, and the records of unfinished jobs."""
    found = b""
    with pymongo.MongoClient(stack.mongo, document_class=RawBSONDocument) as client:
        database = client.get_default_database()
        unfinished = set(database["job"].distinct("_id", {"dask.open": True}))
        assert {"job", "dask_job", "token", "api_key"} <= set(database.list_collection_names())
        for name in set(database.list_collection_names()) - {"token", "api_key"}:
            for document in database[name].find():
                if name != "dask_job" or document["_id"] not in unfinished:
                    found += document.raw
    return found


def processes(stack: Any) -> list[psutil.Process]:
    parts = [psutil.Process(part.pid) for part in stack.parts]
    return [p for part in parts for p in (part, *part.children(recursive=True))]


def proc(stack: Any, name: str) -> bytes:
    found = b""
    for process in processes(stack):
        try:
            found += Path(f"/proc/{process.pid}/{name}").read_bytes() + b"\n"
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def state_of_cluster(stack: Any, directory: Path) -> bytes:
    path = directory / secrets.token_hex(4)
    with Client(stack.scheduler, set_as_default=False) as client:
        client.dump_cluster_state(str(path))
    return gzip.decompress(path.with_suffix(".msgpack.gz").read_bytes())


def keys(stack: Any) -> bytes:
    def tell(dask_scheduler: Any) -> str:
        return "\n".join(
            f"{key!r} {task.annotations!r} {task.run_spec!r} {task.metadata!r}"
            for key, task in dask_scheduler.tasks.items()
        )

    with Client(stack.scheduler, set_as_default=False) as client:
        return str(client.run_on_scheduler(tell)).encode()


def pages(stack: Any) -> bytes:
    """Return the pages of the dashboard about all workers and tasks."""
    return bytes(wait_until(lambda: pages_of_a_moment(stack), 60))


def pages_of_a_moment(stack: Any) -> bytes | None:
    """Return the pages, None if a task has gone meanwhile."""
    base = stack.dashboard.rsplit("/", 1)[0]
    with Client(stack.scheduler, set_as_default=False) as client:
        info = client.scheduler_info(n_workers=-1)["workers"]
        names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
    paths = ["status", "tasks", "json/counts.json", "json/index.html", "metrics", "health"]
    paths += ["info/main/workers.html", "info/logs.html", "individual-plots.json"]
    for worker in info:
        address = requests.utils.quote(worker, safe="")
        paths += [f"info/{kind}/{address}.html" for kind in ("worker", "logs", "call-stacks")]
    quoted = [requests.utils.quote(str(name), safe="") for name in names]
    paths += [f"info/task/{name}.html" for name in quoted]
    answers = [requests.get(f"{base}/{path}", timeout=20) for path in paths]
    with Client(stack.scheduler, set_as_default=False) as client:
        left = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
    if not set(names) <= set(left):
        return None
    assert sum(answer.ok for answer in answers) >= len(answers) - 3
    return b"\n".join(answer.content for answer in answers)


def files(stack: Any) -> bytes:
    """Return the content of all files of the stack, including logs and caches."""
    found = b""
    top = Path(stack.directory)
    # Directories may go while they are read.
    every = (Path(root, name) for root, _, names in os.walk(top) for name in names)
    for path in every:
        where = path.relative_to(top).parts[0]
        if where in FOREIGN or not path.is_file():
            continue
        if where in KEPT:
            assert path.stat().st_mode & 0o777 == 0o600
            continue
        try:
            found += path.read_bytes() + b"\n"
        except FileNotFoundError:
            continue
    return found


def places(stack: Any, directory: Path) -> dict[str, bytes]:
    return {
        "documents": documents(stack),
        "logs of jobs": stack.call(logs_of_all),
        "command lines": proc(stack, "cmdline"),
        "environments": proc(stack, "environ"),
        "state of the cluster": state_of_cluster(stack, directory),
        "keys and annotations": keys(stack),
        "pages": pages(stack),
        "files": files(stack),
    }


def holding(found: dict[str, bytes], secret: str) -> set[str]:
    coded = [base64.b64encode(b"?" * n + secret.encode())[4:-4] for n in range(3)]
    forms = [secret.encode(), *coded]
    return {place for place, data in found.items() if any(form in data for form in forms)}


# -- the run ----------------------------------------------------------------------------------


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def sow(stack: Any, client: Client, seed: str) -> Any:
    """Plant secrets that the search must find: in a process, a key, Girder's log and a file."""

    def start_process() -> None:
        code = [sys.executable, "-c", "import time; time.sleep(300)", seed]
        subprocess.Popen(code, env={"SEED": seed})

    requests.get(f"{stack.api}/system/version?seed={seed}", timeout=10)
    (Path(stack.directory) / "workers" / "left").write_text(seed)
    future = client.submit(start_process, key=f"seed-{seed}", pure=False)
    future.result(timeout=20)
    return future


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[TestStack]:
    with TestStack(tmp_path / "stack", 1, 4, with_dashboard=True) as started:
        yield started


def work_from_a_notebook(stack: Any, seed: str) -> set[str]:
    """Start jobs through ``connect()``, and return the key and the tokens that it takes."""
    key = stack.admin.post("api_key", parameters={"name": "notebook", "active": "true"})["key"]
    with girder_dask.connect(stack.girder, api_key=key, scheduler=stack.scheduler):

        @girder_dask.task
        def count(n: int) -> int:
            print(n)
            return n + 1

        assert count.delay(23).get(timeout=30) == 24
        assert sum(count.map(range(3)).get(timeout=30)) == 6
        with pytest.raises(ZeroDivisionError):
            girder_dask.task(lambda: 1 / 0).delay().get(timeout=30)
    return {key}


def test_no_secret_is_left_anywhere(stack, tmp_path):
    seed = secrets.token_hex(32)
    stack.call(watch)
    user = stack.create_user()
    made = {stack.api_key, stack.password, user.client.token, stack.admin.token}
    ended = stack.call(start_all, user.folder["_id"], seed, user=user)
    made |= work_from_a_notebook(stack, seed)
    for job_id in ended.values():
        stack.wait(job_id)
    assert stack.job(ended["pushes"])["status"] == JobStatus.SUCCESS, stack.log(ended["pushes"])
    with Client(stack.scheduler, set_as_default=False) as client:
        sown = sow(stack, client, seed)
        lasting = stack.call(start_long, user=user)
        for name in ("thread", "process"):
            stack.wait(lasting[name], status=JobStatus.RUNNING)
            wait_until(lambda name=name: "begun" in stack.log(lasting[name]))
        running = places(stack, tmp_path)
        assert len(processes(stack)) >= 7
        sown.release()
    for job_id in lasting.values():
        stack.admin.put(f"job/{job_id}/cancel")
    for job_id in lasting.values():
        assert stack.wait(job_id)["status"] == JobStatus.CANCELED
    over = places(stack, tmp_path)
    made |= stack.call(made_in_girder)
    assert len(made) > 50

    # The search finds what is there.
    assert holding(running, seed) == set(running)
    for found in (running, over):
        left = {place for secret in made for place in holding(found, secret)}
        assert left == set()
