"""Containers as jobs, by Docker and by Podman, on a real stack."""

from __future__ import annotations

from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.transforms import GirderFileId, GirderUploadToFolder
from tests.integration.docker.conftest import Containers

# Some of its characters divide options where an engine has such.
NAME = 'a,source=hostname,ro=false:rw "x".txt'

_UPPER = """
echo "user $(id -u), reading $1"
tr a-z A-Z < "$1" > /outputs/upper.txt
echo '{"current": 1, "total": 2, "message": "half"}' > $GIRDER_PROGRESS
echo warned >&2
touch /bin/x 2>/dev/null || echo read-only
echo x 2>/dev/null >> "$1" || echo kept
ls /sys/class/net
"""


def contents(client: Any, folder: str) -> dict[str, bytes]:
    """Return the files of a folder by name."""
    return {
        file["name"]: b"".join(client.downloadFileAsIterator(file["_id"]))
        for item in client.listItem(folder)
        for file in client.listFile(item["_id"])
    }


def test_run_reads_inputs_and_uploads_outputs(
    containers: Containers, girder_stack: Any, girder_user: Any
) -> None:
    file = girder_stack.upload(b"twenty coins", NAME, client=girder_user.client)
    folder = girder_user.folder["_id"]
    job_id = containers.start(
        _UPPER,
        GirderFileId(file["_id"]),
        user=girder_user,
        outputs="upper.txt",
        options={"girder_result_hooks": [GirderUploadToFolder(folder)]},
    )
    job = containers.wait(job_id)
    log = containers.log(job_id)
    assert job["status"] == JobStatus.SUCCESS, log
    # The stack runs as root here, or as the account of whoever runs the tests.
    assert sorted(log.splitlines()) == sorted(
        [
            f"user 65534, reading /inputs/1/{NAME}",
            *("warned", "read-only", "kept", "lo"),
        ]
    )
    assert contents(girder_user.client, folder)["upper.txt"] == b"TWENTY COINS"
    assert job["progress"]["message"] == "half"
    image = containers.engine.get("/images/busybox:latest/json")
    known = [image["Id"].removeprefix("sha256:"), *(image["RepoDigests"] or ())]
    (recorded,) = job["dask"]["images"]
    assert recorded["name"] == "busybox:latest"
    assert recorded["digest"].removeprefix("sha256:") in known


def test_run_writes_whole_logs_of_short_containers(docker: Containers) -> None:
    """Eight at once, each with bytes of both streams and a character in two writes."""
    script = """
    i=0; while [ $i -lt 200 ]; do echo "$1 out $i"; echo "$1 err $i" >&2; i=$((i+1)); done
    printf '\\303'; sleep 0.01; printf '\\251\\n'
    """
    jobs = {n: docker.start(script, n) for n in range(8)}
    for n, job_id in jobs.items():
        assert docker.stack.wait(job_id, timeout=90)["status"] == JobStatus.SUCCESS
        lines = docker.log(job_id).splitlines()
        assert [line for line in lines if "out" in line] == [f"{n} out {i}" for i in range(200)]
        assert [line for line in lines if "err" in line] == [f"{n} err {i}" for i in range(200)]
        assert [line for line in lines if "out" not in line and "err" not in line] == ["é"]
    assert docker.engine.containers() == []


def test_run_reports_how_containers_fail(docker: Containers) -> None:
    limit = {"resources": None, "retries": 2}
    jobs = {
        "exit": docker.start("echo the last line; exit 3"),
        "silent": docker.start("exit 4"),
        "missing": docker.start("true", entrypoint="/bin/nosuch", options={"retries": 0}),
        "output": docker.start("touch /outputs/b.txt", outputs=["b.txt", "a.txt"]),
        "path": docker.start("true", outputs="../x", options=limit),
    }
    logs = {}
    for name, job_id in jobs.items():
        assert docker.stack.wait(job_id, timeout=60)["status"] == JobStatus.ERROR
        logs[name] = docker.log(job_id)
    assert logs["exit"] == (
        "the last line\nThe container of busybox:latest ended with exit code 3. Its last lines are "
        "above.\n"
    )
    assert logs["silent"] == (
        "The container of busybox:latest ended with exit code 4. It has written nothing.\n"
    )
    assert "The image busybox:latest has no such program" in logs["missing"]
    assert "'/bin/nosuch'" in logs["missing"]
    assert logs["output"] == (
        "The container has written no 'a.txt' into /outputs. It has written: b.txt.\n"
    )
    assert "give the name of a file in /outputs" in logs["path"]
    assert "not retried, as it would fail in the same way" in logs["path"]
    assert docker.engine.containers() == []


def test_run_says_that_memory_ran_out(docker: Containers, settings: Any) -> None:
    settings(memory="20 MiB")
    job_id = docker.start("exec dd if=/dev/zero of=/dev/null bs=100M count=1")
    job = docker.wait(job_id)
    assert job["status"] == JobStatus.ERROR
    assert "ran out of memory and was killed (exit code 137)" in docker.log(job_id)
    assert "its limit of 20.00 MiB" in docker.log(job_id)


def test_run_says_that_an_image_is_missing(containers: Containers, settings: Any) -> None:
    def start(image: str) -> str:
        def start_it() -> str:
            from girder_dask.docker import run

            return str(run.delay(image, ["true"]).id)

        return str(containers.stack.call(start_it))

    settings(pull="never")
    never = start("absent:1")
    containers.wait(never, JobStatus.ERROR)
    assert "does not have the image absent:1, and pulls none" in containers.log(never)
    settings(pull="missing")
    refused = start("registry.invalid/absent:1")
    containers.wait(refused, JobStatus.ERROR)
    log = containers.log(refused)
    assert log.startswith("Pulling the image registry.invalid/absent:1.\n")
    assert "is not on this worker, and cannot be pulled" in log
    assert "ask the operator to load it into the engine" in log


def test_run_says_that_there_is_no_engine(docker: Containers, settings: Any) -> None:
    settings(engine="unix:///nowhere/docker.sock")
    job_id = docker.start("true")
    docker.wait(job_id, JobStatus.ERROR)
    assert "There is no container engine at /nowhere/docker.sock" in docker.log(job_id)
    settings(engine="none")
    job_id = docker.start("true")
    docker.wait(job_id, JobStatus.ERROR)
    assert "This worker runs no containers (girder.docker.engine)" in docker.log(job_id)


def test_run_is_a_function_inside_tasks(containers: Containers, girder_stack: Any) -> None:
    """The outputs of one container are the inputs of the next, and a failure can be caught."""
    code = """
import pathlib
from girder_dask.docker import ContainerFailed, run
sh = ["/bin/sh", "-c"]
(pathlib.Path("level.txt")).write_text("7")
first = run("busybox:latest", [*sh, 'cat "$0" > /outputs/a; ln -s /etc/passwd /outputs/link',
                               pathlib.Path("level.txt")], outputs="a")
second = run("busybox:latest", [*sh, 'cat $IN; echo "$0"', ["--in=", first]], env={"IN": first})
try:
    run("busybox:latest", ["false"])
except ContainerFailed as e:
    print("code", e.exit_code)
first = pathlib.Path(first)
result = first.read_text(), sorted(path.name for path in first.parent.iterdir())
"""

    def start() -> str:
        from my_worker_tasks import does

        return str(does.delay(code).id)

    job_id = girder_stack.call(start)
    job = containers.wait(job_id)
    log = containers.log(job_id)
    assert job["status"] == JobStatus.SUCCESS, log
    assert log == (
        "girder_dask: /outputs/link is left out: it is a link to another place.\n"
        "7--in=/inputs/1/a\ncode 1\n"
    )

    def value() -> Any:
        from girder_dask import JobResult

        return JobResult(job_id).get(timeout=10)

    assert girder_stack.call(value) == ("7", ["a"])


def test_run_is_refused_where_the_job_is_not_known(docker: Containers) -> None:
    """A thread without the context of a job has no rights of its own, also in a process."""
    code = """
from contextvars import Context
from girder_dask.docker import run
Context().run(run, "busybox:latest", ["true"])
"""

    def start() -> list[str]:
        from my_worker_tasks import does

        return [str(does.options(isolation=each).delay(code).id) for each in ("thread", "process")]

    for job_id in docker.stack.call(start):
        docker.wait(job_id, JobStatus.ERROR)
        assert "on a worker in a thread that belongs to no job" in docker.log(job_id)
        assert "girder_dask.docker.run.delay()" in docker.log(job_id)
