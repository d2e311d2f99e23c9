"""The arguments of a container, which come from requests, and the thread that gives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import Context
from typing import Any

import dask
import pytest

from girder_dask import docker
from girder_dask.docker.call import ContainerCall
from girder_dask.docker.mounts import ArgumentResolver
from girder_dask.docker.running import _limits
from girder_dask.docker.settings import ContainerSettings
from girder_dask.errors import ContainerError, GirderDaskError
from girder_dask.tasks import running_job
from girder_dask.tasks.running_job import RunningJob, set_process_of_jobs

VALID: dict[str, Any] = {"image": "busybox:1", "args": ["-i", 3]}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"entrypoint": "/bin/sh", "workdir": "/a b/c", "env": {"A": "1"}, "network": True},
        {"args": (), "outputs": ["a.txt", "b/c.txt"]},
    ],
)
def test_call_takes_valid_arguments(given: dict[str, Any]) -> None:
    ContainerCall(**{**VALID, **given}).check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": 7}, "7 is not the name of an image"),
        ({"args": 7}, "args=7: give a list"),
        ({"args": {"a": 1}}, "args={'a': 1}: give a list"),
        ({"entrypoint": ["/bin/sh"]}, "entrypoint=['/bin/sh']: give the path of a program"),
        ({"entrypoint": ""}, "entrypoint='': give a path, or None for that of the image"),
        ({"entrypoint": "/bin\0sh"}, "entrypoint='/bin\\x00sh': give a path of printable"),
        ({"entrypoint": "/x" * 4096}, "give a path of printable characters, 4,096 at most"),
        ({"env": [("A", "1")]}, "env=[('A', '1')]: give a dict"),
        ({"outputs": 7}, "outputs=7: give the name of a file, or a list of names"),
        ({"outputs": ["a", 7]}, "outputs=7: give the name of a file in /outputs"),
        ({"outputs": "a\0b"}, "outputs='a\\x00b': give the name of a file in /outputs"),
        ({"workdir": 7}, "workdir=7: give a path in the container"),
        ({"workdir": "work"}, "workdir='work': give a path that begins with '/'"),
        ({"workdir": "/a\nb"}, "workdir='/a\\nb': give a path of printable characters"),
        ({"network": "host"}, "network='host': give True or False"),
        ({"network": None}, "network=None: give True or False"),
    ],
)
def test_call_refuses_what_no_engine_takes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ContainerError) as error:
        ContainerCall(**{**VALID, **given}).check()
    assert message in str(error.value)
    assert error.value.permanent


def test_text_that_is_not_utf8_is_refused() -> None:
    resolver = ArgumentResolver(None, [])
    with pytest.raises(ContainerError, match=r"args\[0\] is .* which is not UTF-8"):
        resolver.arguments(["a\udcff"])
    with pytest.raises(ContainerError, match=r"env\['A'\] is .* which is not UTF-8"):
        resolver.variables({"A": "a\udcff"})


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"CPU": 0.001}, r"A limit of 0\.001 cores .* which needs 0\.01"),
        ({"MEMORY": 4.0}, r"A limit of 4 bytes .* which needs 6\.00 MiB\. MEMORY is in bytes"),
    ],
)
def test_limits_that_are_too_small_are_refused(resources: dict[str, float], message: str) -> None:
    settings = ContainerSettings.read()
    assert _limits({"CPU": 0.5, "MEMORY": 1e9}, settings) == (0.5, 1_000_000_000)
    assert _limits({}, settings) == (None, None)
    with pytest.raises(ContainerError, match=message):
        _limits(resources, settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("memory", value) for value in ("lots", 0, [])),
        *(("cpus", value) for value in ("two", 0, True)),
        *(("processes", value) for value in (None, 0, "many")),
        ("pull", "sometimes"),
        ("images", 7),
        ("volumes", {"a": "b"}),
        ("user", "root"),
    ],
)
def test_settings_name_the_one_that_is_invalid(name: str, value: Any) -> None:
    with (
        dask.config.set({f"girder.docker.{name}": value}),
        pytest.raises(GirderDaskError, match=rf"girder\.docker\.{name} is .* configuration\. Set"),
    ):
        ContainerSettings.read()


@pytest.fixture
def process_of_jobs() -> Iterator[None]:
    """This process runs jobs, as that of a worker does."""
    set_process_of_jobs(True)
    yield
    set_process_of_jobs(False)


@pytest.mark.usefixtures("process_of_jobs")
def test_run_is_refused_in_a_thread_that_has_lost_its_job() -> None:
    """Such a thread would count as one of somebody who may use any image and any file."""
    token = running_job.current.set(RunningJob(id="5" * 24))
    try:
        with (
            dask.config.set({"girder.docker.engine": "none"}),
            pytest.raises(ContainerError, match="This worker runs no containers"),
        ):
            docker.run("busybox")
        with pytest.raises(ContainerError, match="in a thread that belongs to no job"):
            Context().run(docker.run, "busybox")
    finally:
        running_job.current.reset(token)
