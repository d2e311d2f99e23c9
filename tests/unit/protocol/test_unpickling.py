"""Pickles that name what has moved since."""

from __future__ import annotations

import importlib.util
import pickle

import cloudpickle
import pytest

from girder_dask.protocol import unpickling
from girder_dask.protocol.exceptions import open_exception
from girder_dask.protocol.payload import Dependency, open_call, open_value
from girder_dask.protocol.plain_values import dump_plain
from girder_dask.tasks.options import TaskSettings

# What a pickled call, value or exception can name: classes and functions that users hold,
# and what the package itself writes. By the modules that the first release had.
NAMES = {
    "calls": "TaskSettings",
    "composition": "Chain Group GroupResult Signature chain chord group",
    "connection": "Connection connect",
    "context": "JobManager Request RunningJob current_job",
    "describing.arguments": "argument",
    "describing.descriptions": "MissingDescriptionException describe describe_function "
    "get_description_attribute",
    "describing.inputs": "MissingInputException call_item_task get_input_data parse_inputs",
    "describing.types": "Boolean Color GirderFolder GirderItem Integer NumberChoice Range String",
    "discovery": "discover",
    "entrypoint": "GirderWorkerPluginABC get_extension_tasks get_extensions get_module_tasks",
    "errors": "ArgumentError CancelInterrupt GirderDaskError GirderError JobCanceled JobError "
    "JobFailed JobInterrupted JobTimeout NotConnectedError PayloadTooLargeError ResultUnavailable "
    "SchedulerError StackError SubmissionError TaskNotFoundError TimeoutInterrupt TransformError",
    "inputs": "GirderFileId GirderFileIdAllowDirect GirderFolderId GirderItemId TemporaryDirectory",
    "jobs": "JobStatus can_follow waits_for",
    "outputs": "GirderItemMetadata GirderUploadJobArtifact GirderUploadToFolder GirderUploadToItem",
    "payload": "Call Dependency readable",
    "porting": "App app girder_job",
    "progress": "progress",
    "remote_errors": "RemoteTraceback _again _rebuilt",
    "result": "JobResult MapResult",
    "task": "Task find_task task",
    "transform": "ResultTransform Transform detached explain is_transform",
    "files.base": "ResultTransform Transform explain",
    "tasks.context": "JobManager Request RunningJob",
    "transforms": "GirderFileId Transform",
    "waiting": "as_completed gather",
    "without_job": "WithoutJob run",
}
# The internal names that this release writes. What moves one of them adds a row to MOVED.
NAMES_NOW = {
    "protocol.exceptions": "RemoteTraceback _again _rebuilt",
    "protocol.messages": "_rebuild_spec",
    "protocol.payload": "Dependency",
    "tasks.girder_worker_compat": "App",
    "tasks.composition": "Chain Group GroupResult Signature",
    "tasks.running_job": "JobManager Request RunningJob",
    "tasks.options": "TaskSettings",
    "tasks.task": "find_task",
    "tasks.untracked": "UntrackedResult",
}
EACH = [
    (f"girder_dask.{module}", name)
    for module, ns in [*NAMES.items(), *NAMES_NOW.items()]
    for name in ns.split()
]


def named(module: str, name: str) -> bytes:
    """Return a pickle of what a module has under a name, whether it is there or not."""
    return f"c{module}\n{name}\n.".encode()


@pytest.mark.parametrize(("module", "name"), EACH)
def test_loads_finds_what_releases_have_named(module: str, name: str) -> None:
    found = unpickling.loads(named(module, name))
    own = getattr(found, "__qualname__", type(found).__qualname__)
    assert own == {"WithoutJob": "UntrackedResult", "app": "App"}.get(name, name)


@pytest.mark.parametrize("module", sorted(unpickling.MOVED))
def test_moved_modules_have_no_stand_in(module: str) -> None:
    name = f"girder_dask.{module}"
    assert importlib.util.find_spec(name) is None
    for target in unpickling.MOVED[module]:
        importlib.import_module(f"girder_dask.{target}")


def test_loads_opens_what_is_named_now() -> None:
    for module, name in EACH:
        found = unpickling.loads(named(module, name))
        if callable(found) and name != "TaskSettings":
            assert unpickling.loads(pickle.dumps(found)) is found


def test_loads_finds_modules_that_a_function_refers_to() -> None:
    old = cloudpickle.dumps(cloudpickle.cloudpickle.subimport)  # as a function, by name
    assert unpickling.loads(old)("girder_dask.result").__name__ == "girder_dask.client.result"
    assert unpickling.loads(old)("xml.dom.minidom").__name__ == "xml.dom.minidom"


def test_loads_refuses_what_is_nowhere() -> None:
    with pytest.raises(AttributeError, match="Nowhere"):
        unpickling.loads(named("girder_dask.payload", "Nowhere"))
    with pytest.raises(ModuleNotFoundError, match="no_module"):
        unpickling.loads(named("girder_dask.no_module", "Nowhere"))


def test_calls_values_and_exceptions_are_opened_with_former_names() -> None:
    old = b"(N(cgirder_dask.inputs\nGirderFileId\ncgirder_dask.payload\nDependency\nt(d(tNt."
    opened = open_call(b"p" + old)
    assert opened.args[0].__name__ == "GirderFileId"
    assert opened.args[1] is Dependency
    value = open_value(b"p" + named("girder_dask.result", "JobResult"), unpickle=True)
    assert value.__name__ == "JobResult"
    pickled = b"(cgirder_dask.errors\nJobFailed\n(Vno coins\ntcgirder_dask.result\nJobResult\n0(dt."
    error, _ = open_exception(dump_plain({"text": "", "pickled": pickled}), unpickle=True)
    assert str(error) == "no coins"


def test_loads_fills_the_settings_of_a_task() -> None:
    values = ["A title", "dask", False, "dask_handler", {}, True, 2, 1.5, None, 3, None, False]
    state = pickle.dumps(values, protocol=4)[11:-1]  # without its frame and its end
    settings = unpickling.loads(b"\x80\x04cgirder_dask.calls\nTaskSettings\n)\x81" + state + b"b.")
    assert settings == TaskSettings(
        title="A title", bind=True, retries=2, timeout=1.5, priority=3, at_most_once=False
    )
    again = pickle.dumps(settings)
    assert unpickling.loads(again) == settings
    assert b"at_most_once" in again, "it names the values"
