"""The fenced blocks of the documentation, and how each kind is tested.

==========================  ==================================================================
``python``                  runs here; these blocks of a page share their names
``python girder``           runs in a request of a user of a real Girder, with ``file`` (a
                            Girder file of the user) and ``folder`` (the id of theirs); these
                            blocks of a page share their names as well
``python girder containers``  the same, twice: with workers that have Docker, and with Podman
``python notebook``         runs here as in a notebook, with a real Girder to connect to, and
                            with ``file_ids`` (of pictures in it); these blocks of a page share
                            their names and their connection
``python test``             a module of tests, which is run with the fixtures it asks for
``… title="path"``          is an exact excerpt of this file of the project
``sh``                      names commands and options that exist
``yaml``                    sets keys of Dask's configuration that exist
``json retention``          is a value of the setting ``dask.retention``
``text``                    is a drawing, or output that a separate test checks
``{…}``                     is a directive of Sphinx, which checks it
==========================  ==================================================================

Any other block is an error. Blocks in Python that begin with ``>>>`` are doctests.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from tests.support import commands, dask_keys, notebook
from tests.support.docker_engine import worker_settings

__all__ = ["ROOT", "blocks", "read_blocks"]

ROOT = Path(__file__).parents[2]

_lexer = RawFencedCodeBlockLexer(re.compile(r"[ \t]*(?P<info>.*)$\n", re.MULTILINE))
_title = re.compile(r'(?P<language>\w+) title="(?P<path>[^"]+)"')


def read_blocks(document: Document) -> Iterable[Region]:
    """Yield the blocks of a page that are checked."""
    for region in _lexer(document):
        info = region.lexemes["info"].strip()
        if info == "text" or info.startswith("{"):
            continue
        evaluator = _evaluator(info)
        yield Region(region.start, region.end, region.lexemes["source"], evaluator)


def blocks(page: Path, info: str) -> list[str]:
    """Return the blocks of a page whose first line is this one."""
    document = Document(page.read_text(), str(page))
    found = [r.lexemes for r in _lexer(document)]
    return [str(lexemes["source"]) for lexemes in found if lexemes["info"].strip() == info]


def _evaluator(info: str) -> Callable[[Example], None]:
    titled = _title.fullmatch(info)
    if titled is not None:
        return lambda example: _compare(example.parsed, titled["path"])
    if info in _EVALUATORS:
        return _EVALUATORS[info]

    def refuse(_example: Example) -> None:
        raise AssertionError(f"No test checks blocks that begin with {info!r}.")

    return refuse


# -- tests of each kind --------------------------------------------------------------------


def _compare(block: str, path: str) -> None:
    text = (ROOT / path).read_text()
    if block.strip("\n") not in text:
        raise AssertionError(f"{path} does not contain this text:\n{text}")


def _check_retention(block: str) -> None:
    import json

    from girder_dask.plugin.retention_rules import read_rules

    assert read_rules(json.loads(block))


def _run_here(example: Example) -> None:
    if example.parsed.startswith(">>>"):
        run(example.parsed, example.namespace)
    else:
        PythonEvaluator()(example)


def _run_in_girder(example: Example) -> None:
    stack = example.namespace["fixture"]("girder_stack")
    if "_girder" not in example.namespace:
        user = stack.create_user()
        file = stack.upload(_picture(), client=user.client)
        example.namespace["_girder"] = (user, {"file": file, "folder": user.folder["_id"]})
    user, names = example.namespace["_girder"]
    names.update(stack.call(run_and_keep, str(example.parsed), names, user=user))


def _run_with_containers(example: Example) -> None:
    fixture = example.namespace["fixture"]
    for name, variable in (("docker", "DOCKER_HOST"), ("podman", "CONTAINER_HOST")):
        variables = {variable: fixture(f"{name}_engine").url}
        settings = {"girder.docker.engine": name}
        with worker_settings(fixture("girder_stack"), variables, settings):
            _run_in_girder(example)


def _picture() -> Path:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "coins.png"


def _run_tests(example: Example) -> None:
    module: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(example.parsed, example.path, "exec"), module)  # noqa: S102 - it is our own
    tests = [value for name, value in module.items() if name.startswith("test_")]
    assert tests, "The block has no tests."
    for test in tests:
        wanted = inspect.signature(test).parameters
        test(**{name: example.namespace["fixture"](name) for name in wanted})


_EVALUATORS: dict[str, Callable[[Example], None]] = {
    "python": _run_here,
    "python girder": _run_in_girder,
    "python girder containers": _run_with_containers,
    "python notebook": notebook.run_block,
    "python test": _run_tests,
    "sh": lambda example: commands.check(example.parsed),
    "yaml": lambda example: dask_keys.check(example.parsed),
    "json retention": lambda example: _check_retention(example.parsed),
}


# -- running a block, here or in Girder ----------------------------------------------------


def run(source: str, names: dict[str, Any]) -> None:
    """Run a block, as a doctest if it is one. ``names`` is its namespace, which it changes."""
    import doctest
    import io

    if not source.startswith(">>>"):
        exec(compile(source, "snippet", "exec"), names)  # noqa: S102 - it is our own
        return
    test = doctest.DocTestParser().get_doctest(source, names, "snippet", None, 0)
    test.globs = names
    said = io.StringIO()
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS
        | doctest.NORMALIZE_WHITESPACE
        | doctest.IGNORE_EXCEPTION_DETAIL
    )
    runner.run(test, out=said.write, clear_globs=False)
    if runner.failures:
        raise AssertionError(said.getvalue())


def run_and_keep(source: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block in Girder, and return the names that it has defined and that can be pickled."""
    import cloudpickle

    made = {"__name__": "snippet", **names}
    run(source, made)
    kept = {}
    for name, value in made.items():
        if name.startswith("__"):
            continue
        try:
            cloudpickle.dumps(value)
        except Exception:  # noqa: BLE001, S112 - whatever it is, it stays there
            continue
        kept[name] = value
    return kept
