"""Each module imports only what is below it, and importing the package costs little."""

from __future__ import annotations

import ast
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


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout


HEAVY = {"girder", "girder_jobs", "girder_client", "distributed", "dask", "pymongo", "bson"}
CLIENTS = {"requests", "urllib3"}
# What the extra ``celery`` brings.
CELERY = {"celery", "kombu", "girder_worker", "jsonpickle"}


# import-linter counts imports within functions as well, so that it cannot tell these apart.
@pytest.mark.parametrize(
    ("module", "refused"),
    [
        ("girder_dask", HEAVY | CLIENTS | CELERY),
        ("girder_dask.transforms", HEAVY | CELERY),
        ("girder_dask.scheduler_hooks", CELERY),
        ("girder_dask.worker.plugin", CELERY),
        ("girder_dask.plugin.backend", CELERY),
    ],
)
def test_importing_a_module_loads_nothing_that_it_does_not_need(
    module: str, refused: set[str]
) -> None:
    loaded = json.loads(
        run_python(f"import json, sys, threading, {module}; print(json.dumps(list(sys.modules)))")
    )
    assert module in loaded
    assert not refused & set(loaded)


def test_importing_the_package_starts_nothing() -> None:
    code = """
import sys, threading
def refuse(event, args):
    if event in {"socket.connect", "socket.bind", "subprocess.Popen", "os.fork"}:
        raise RuntimeError(event)
sys.addaudithook(refuse)
import girder_dask
print(threading.active_count(), girder_dask.client.backend._backend)
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
