"""The page on porting: that it has every name of girder_worker, and that what it names exists."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "porting.md").read_text()
CODE = " ".join(re.findall(r"`([^`\n]+)`", PAGE))

#: What code for girder_worker uses, beside what the modules below define.
NAMES = [
    "girder_worker.app.app",
    "@app.task(bind=True)",
    "girder_job",
    "delay",
    "apply_async",
    "task.s",
    "task.signature",
    "chain",
    "group",
    "chord",
    "queue",
    "countdown",
    "eta",
    "girder_user",
    "girder_job_title",
    "girder_job_type",
    "girder_job_public",
    "girder_job_handler",
    "girder_job_other_fields",
    "girder_job_disable",
    "girder_client_token",
    "girder_client_session_kwargs",
    "girder_api_url",
    "girder_result_hooks",
    "result.job",
    "result['title']",
    ".id",
    ".task_id",
    ".get()",
    ".state",
    ".ready()",
    ".successful()",
    ".failed()",
    ".revoke()",
    "write",
    "updateProgress",
    "updateStatus",
    "refreshStatus",
    "girder_client",
    "canceled",
    "request",
    "AsyncResult",
    "describe()",
    "call_item_task(inputs",
    "girder_worker_plugins",
    "task_imports()",
    "get_extensions",
    "get_extension_tasks",
    "get_module_tasks",
    "argument(",
    "describe_function",
    "parse_inputs",
    "types.*",
    "transform(data)",
    "exception()",
    "cleanup",
    "_repr_model_",
    "docker_run(image",
    "pull_image",
    "entrypoint=",
    "container_args=",
    "volumes=",
    "remove_container=",
    "docker_kwargs",
    "BindMountVolume",
    "TemporaryVolume.default",
    "VolumePath",
    "NamedInputPipe",
    "NamedOutputPipe",
    "Connect",
    "HostStdOut",
    "HostStdErr",
    "ContainerStdOut",
    "ContainerStdErr",
    "ChunkedTransferEncodingStream",
    "ProgressPipe",
    "getWorkerApiUrl",
    "jobInfoSpec",
    "girderInputSpec",
    "girderOutputSpec",
    "jobs.schedule",
    "jobs.cancel",
    "jobs.status.validate",
    "jobs.status.validTransitions",
    "jobs.job.update",
    "jobs.job.update.after",
    "createJob",
    "scheduleJob",
    "updateJob",
    "cancelJob",
    "setParentJob",
    "listChildJobs",
    "worker.api_url",
    "worker.direct_path",
    "GIRDER_WORKER_API_URL",
    "GW_DIRECT_PATHS",
    "GIRDER_WORKER_JOB_GC_SCOPE",
    "GIRDER_WORKER_BROKER",
    "GIRDER_WORKER_BACKEND",
    "GIRDER_WORKER_DOCKER_RUN_OPTIONS",
]

MODULES = [
    "girder_worker.utils.transforms.girder_io",
    "girder_worker.utils.transforms.contrib.girder_io",
    "girder_worker.utils.transforms.common",
    "girder_worker.utils.transform",
    "girder_worker.docker.transforms",
    "girder_worker.docker.transforms.girder",
]

#: What nobody names: the base of others.
BASES = {"NamedPipeBase"}


def defined_in(module: Any) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_girder_worker_is_on_the_page(name: str) -> None:
    assert name in CODE or name in PAGE.replace("`", "")


@pytest.mark.parametrize("module", MODULES)
def test_every_public_class_of_girder_worker_is_on_the_page(module: str) -> None:
    names = [n for n in defined_in(importlib.import_module(module)) if not n.startswith("_")]
    assert names
    assert {name for name in names if not re.search(rf"\b{name}\b", CODE)} <= BASES


def test_every_option_of_girder_worker_is_on_the_page() -> None:
    from girder_worker.task import Task

    options = [*Task.reserved_headers, *Task.reserved_options]
    assert [option for option in options if option not in CODE] == []


ROWS = re.findall(
    r"^\| `from (\S+) import (\w+)` \| `from (\S+) import (\w+)` \|", PAGE, re.MULTILINE
)


@pytest.mark.parametrize(("old", "name", "new", "new_name"), ROWS)
def test_an_import_of_the_table_exists_on_both_sides(
    old: str, name: str, new: str, new_name: str
) -> None:
    names: dict[str, object] = {}
    exec(f"from {old} import {name} as old\nfrom {new} import {new_name} as new", names)  # noqa: S102
    assert names["old"] is not names["new"]
    assert name == new_name


def test_the_table_of_imports_is_complete() -> None:
    listed = {name for _, name, _, _ in ROWS}
    for module in MODULES[:4]:
        names = {n for n in defined_in(importlib.import_module(module)) if n[0] != "_"}
        assert names - listed <= {"GirderClientTransform", "GirderClientResultTransform"}


def test_replacements_in_girder_dask_exist() -> None:
    for module, name in re.findall(r"`?(girder_dask(?:\.\w+)*)\.(\w+)\(", PAGE):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_no_row_is_empty() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| ") and not set(line) <= set("|- "):
            first, second, *_ = (cell.strip() for cell in line.strip().strip("|").split(" | "))
            assert first
            assert second, line
