"""Each module imports only what is below it, and importing the package costs little."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import girder_dask

ROOT = Path(girder_dask.__file__).parent

#: A module imports only modules that stand before it. A directory stands for all in it.
# fmt: off
ORDER = [
    "_version", "errors", "foreign", "config", "imports", "jobs", "job_fields",
    "background", "redaction", "http_objects", "tracebacks", "log_records",
    "leaves", "removal", "private_directory", "workspace",
    "working_directory", "environment", "forks",
    "addresses", "redirects", "patience", "links", "session", "apiclient", "starts", "transform",
    "downloads", "traces", "uploads", "locks", "entry", "files", "intake", "inputs", "outputs",
    "transforms",
    "plain", "remote_errors", "payload", "submit",
    "web", "remote", "futures", "bar", "markup", "card", "result", "waiting", "context", "progress",
    "packages", "completion", "without_job", "callables", "calls", "composition", "describing",
    "task", "discovery", "connection", "entrypoint", "porting",
    "girder_dask",
    "logs",
    "pace", "failures", "outbox",
    "gpus", "descendants", "offspring", "interruption", "process_state", "state_items",
    "separation", "surroundings", "dependencies", "transfers",
    "child", "warden", "forkserver", "standby", "launcher", "isolation",
    "station", "runner", "stopping",
    "newest", "cluster", "kept", "hand", "attempts", "gate", "waits", "dispatch", "audit",
    "missing", "delivery", "recorder",
    "losses", "shortage",
    "credential", "girder_api", "facts", "link",
    "dask_cluster", "placement", "procedures", "accounts", "leaving", "signals",
    "nanny_hooks", "worker_hooks", "scheduler_hooks",
    "doctor",
    "standalone", "demo",
    "testing", "plugin",
    "cli",
]
# fmt: on

#: The processes: they stand beside each other, so they do not import each other, but for
#: these.
PROCESSES = [
    "nanny_hooks",
    "worker_hooks",
    "scheduler_hooks",
    "doctor",
    "standalone",
    "demo",
    "testing",
    "plugin",
    "cli",
]
BETWEEN_PROCESSES = {
    ("scheduler_hooks", "worker_hooks"): "the scheduler sends the worker plugin to the workers",
    ("scheduler_hooks", "nanny_hooks"): "the scheduler sends the nanny plugin to the nannies",
    ("cli", "doctor"): "a command",
    ("cli", "demo"): "a command",
    ("cli", "standalone"): "a command",
    ("demo", "standalone"): "the demonstration starts a stack",
    ("testing", "standalone"): "the fixtures start a stack",
    ("plugin", "testing"): "the route by which tests run functions inside Girder",
}

#: What only the plugin imports, but for these.
SERVER_SIDE = {"girder", "girder_jobs", "pymongo", "bson", "cherrypy"}
SERVER_SIDE_ELSEWHERE = {
    ("standalone.checks", "pymongo"): "it asks whether the database answers",
}


def name_of(path: Path) -> str:
    """Return the name of a module without ``girder_dask.``; the package itself keeps its own."""
    return (
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        .removesuffix(".__init__")
        .replace("__init__", "girder_dask")
    )


def unit(module: str) -> str:
    return module.partition(".")[0]


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


class Imports(ast.NodeVisitor):
    """Collects what a module imports anywhere, except for type checkers."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        assert node.module is not None
        for alias in node.names:
            inner = f"{node.module}.{alias.name}".removeprefix("girder_dask.")
            is_module = node.module.startswith("girder_dask") and inner in MODULES
            self.found.add(f"girder_dask.{inner}" if is_module else node.module)


@functools.cache
def imports(module: str) -> frozenset[str]:
    visitor = Imports()
    visitor.visit(ast.parse(MODULES[module].read_text()))
    return frozenset(visitor.found)


def own_imports(module: str) -> Iterator[str]:
    for name in imports(module):
        if name == "girder_dask":
            yield name
        elif name.startswith("girder_dask."):
            yield name.removeprefix("girder_dask.")


def test_every_module_has_its_place_in_the_order() -> None:
    assert {unit(module) for module in MODULES} == set(ORDER), "the list ORDER is out of date"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_is_below_it(module: str) -> None:
    below = ORDER[: ORDER.index(unit(module))]
    above = {name for name in own_imports(module) if unit(name) not in [*below, unit(module)]}
    assert not above


@pytest.mark.parametrize("module", MODULES)
def test_the_processes_do_not_import_each_other(module: str) -> None:
    others = {unit(name) for name in own_imports(module)} & set(PROCESSES) - {unit(module)}
    assert not {other for other in others if (unit(module), other) not in BETWEEN_PROCESSES}


def test_every_exception_is_in_use() -> None:
    used = {(unit(module), unit(name)) for module in MODULES for name in own_imports(module)}
    assert not BETWEEN_PROCESSES.keys() - used
    server_side = {(module, unit(name)) for module in MODULES for name in imports(module)}
    assert not SERVER_SIDE_ELSEWHERE.keys() - server_side


def test_no_package_imports_in_a_circle() -> None:
    known: dict[str, set[str]] = {m: set(own_imports(m)) - {m} for m in MODULES}
    while known:
        free = {module for module, wanted in known.items() if not wanted & known.keys()}
        assert free, f"these import each other: {sorted(known)}"
        known = {module: wanted for module, wanted in known.items() if module not in free}


@pytest.mark.parametrize("module", [m for m in MODULES if unit(m) != "plugin"])
def test_only_the_plugin_needs_what_a_girder_server_has(module: str) -> None:
    found = {unit(name) for name in imports(module)} & SERVER_SIDE
    assert not {name for name in found if (module, name) not in SERVER_SIDE_ELSEWHERE}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("module", ["girder_dask", "girder_dask.transforms"])
def test_importing_the_package_loads_no_server_and_no_cluster(module: str) -> None:
    loaded = json.loads(
        run_python(f"import json, sys, threading, {module}; print(json.dumps(list(sys.modules)))")
    )
    heavy = {"girder", "girder_jobs", "girder_client", "distributed", "dask", "pymongo", "bson"}
    assert "girder_dask.task" in loaded
    assert not heavy & set(loaded)


def test_importing_the_package_starts_nothing() -> None:
    code = """
import sys, threading
def refuse(event, args):
    if event in {"socket.connect", "socket.bind", "subprocess.Popen", "os.fork"}:
        raise RuntimeError(event)
sys.addaudithook(refuse)
import girder_dask
print(threading.active_count(), girder_dask.submit._backend)
"""
    assert run_python(code) == "1 None\n"


PUBLIC = [m for m in MODULES if not any(part.startswith("_") for part in m.split("."))]


@pytest.mark.parametrize("module", PUBLIC)
def test_what_a_module_names_as_public_is_there_and_documented(module: str) -> None:
    # From its text, as modules of the plugin connect to a database when they are imported.
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree), "it does not say what it is"
    defined: dict[str, ast.stmt] = {}
    for statement in tree.body:
        for name in names_in(statement):
            defined[name] = statement
    assert "__all__" in defined, "it does not say what is public"
    public = ast.literal_eval(defined["__all__"].value)  # type: ignore[attr-defined]
    assert len(public) == len(set(public))
    assert not set(public) - defined.keys()
    for name in public:
        definition = defined[name]
        if isinstance(definition, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            assert ast.get_docstring(definition), f"{name} has no docstring"


def names_in(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname or alias.name) for alias in statement.names)
    elif isinstance(statement, ast.Assign):
        yield from (ast.unparse(target) for target in statement.targets)
    elif isinstance(statement, ast.AnnAssign):
        yield ast.unparse(statement.target)
    elif isinstance(statement, (ast.If, ast.Try)):
        for inner in [*statement.body, *statement.orelse]:
            yield from names_in(inner)


@pytest.mark.parametrize("module", [m for m in PUBLIC if unit(m) != "plugin"])
def test_what_a_module_names_as_public_can_be_imported(module: str) -> None:
    name = "girder_dask" if module == "girder_dask" else f"girder_dask.{module}"
    imported = importlib.import_module(name)
    assert all(hasattr(imported, public) for public in imported.__all__)


@pytest.mark.parametrize("name", sorted(set(girder_dask.__all__) - {"__version__"}))
def test_the_names_of_the_package_are_documented(name: str) -> None:
    assert inspect.getdoc(getattr(girder_dask, name))


@pytest.mark.parametrize("name", girder_dask.__all__)
def test_the_methods_of_public_classes_are_documented(name: str) -> None:
    value = getattr(girder_dask, name)
    for member, function in inspect.getmembers(value if inspect.isclass(value) else type(value)):
        if inspect.isfunction(function) and not member.startswith("_"):
            assert inspect.getdoc(function), f"{name}.{member} has no docstring"


def test_only_documented_errors_exist() -> None:
    """The tree at the top of errors.py is the tree of the classes."""
    from girder_dask import errors

    def tree(cls: type, depth: int = 0) -> Iterator[tuple[int, str]]:
        yield depth, cls.__name__
        for child in cls.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from tree(child, depth + 1)

    shown = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", "   ").replace("└──", "   ")
        if line.startswith("    ") and words.split():
            shown.append((words.index(words.strip()) // 4 - 1, words.split()[0]))
    roots = errors.GirderDaskError, errors.JobInterrupted
    assert sorted(shown) == sorted(each for root in roots for each in tree(root))
    assert {name for _, name in shown} == set(errors.__all__)
