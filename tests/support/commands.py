"""Check that the commands in a shell block exist, with their options."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from tests.support import dask_keys

__all__ = ["check"]

_ROOT = Path(__file__).parents[2]
_ASSIGNMENT = re.compile(r"(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>.*)")
_REQUIREMENT = re.compile(r"(?P<name>[\w./-]+?)(\[(?P<extras>[\w,]+)\])?(==.*)?")

#: Commands of the system, RabbitMQ and Celery. Only paths in the project are checked among their
#: arguments.
_SYSTEM = {
    "cd",
    "cp",
    "git",
    "mkdir",
    "chmod",
    "chown",
    "apt-get",
    "systemctl",
    "rabbitmqctl",
    "celery",
    "mongodump",
    "mongorestore",
}


def check(block: str) -> None:
    """Raise AssertionError if a line of a shell block cannot be run as written."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] in ("sudo", "export"):
            words = words[1:]
        while words and (assignment := _ASSIGNMENT.fullmatch(words[0])):
            _check_variable(assignment["name"])
            words = words[1:]
        if words:
            _check_command(words)


def _check_command(words: Sequence[str]) -> None:
    name, arguments = words[0].removeprefix(".venv/bin/"), list(words[1:])
    if name.endswith("/start") and arguments:
        _check_command(arguments)
    elif name == "make":
        _check_make(arguments)
    elif name == "pip":
        _check_pip(arguments)
    elif name == "pytest":
        _check_pytest(arguments)
    elif name in ("girder-dask", "dask", "girder"):
        _check_click(name, arguments)
    elif name in _SYSTEM or name.startswith("scripts/"):
        _check_paths([name, *arguments])
    else:
        raise AssertionError(f"This check does not know the command {name!r}.")


def _check_variable(name: str) -> None:
    if name.startswith("DASK_GIRDER__"):
        dask_keys.check_variable(name)
        return
    sources = [*_ROOT.glob("girder_dask/**/*.py"), _ROOT / "Makefile"]
    known = any(name in path.read_text() for path in sources)
    setting = name.removeprefix("GIRDER_SETTING_").lower().replace("_", ".", 1)
    if not known and setting not in _settings():
        raise AssertionError(f"Nothing reads the variable {name}.")


def _settings() -> set[str]:
    from girder_dask.plugin import settings

    return {settings.SCHEDULER_ADDRESS, settings.API_URL, settings.DIRECT_PATH}


def _check_make(arguments: Sequence[str]) -> None:
    makefile = (_ROOT / "Makefile").read_text()
    for target in arguments:
        if target.startswith("ARGS=") and "bench" in arguments:
            _check_benchmarks(shlex.split(target.removeprefix("ARGS=")))
        elif "=" not in target:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make has no {target!r}"


def _check_benchmarks(arguments: Sequence[str]) -> None:
    from benchmarks.__main__ import parser
    from benchmarks.cases import find

    try:
        for name in parser().parse_args(arguments).cases:
            find(name)
    except (SystemExit, KeyError) as e:
        raise AssertionError(f"There is no such measurement: {' '.join(arguments)}") from e


def _check_pip(arguments: Sequence[str]) -> None:
    assert arguments[0] == "install", arguments
    names = [found["name"] for a in arguments[1:] if (found := _REQUIREMENT.fullmatch(a))]
    if any(name.startswith("./") for name in names):
        assert "." in names, "the package needs girder_dask, which no index of packages has: name ."
    for argument in arguments[1:]:
        if argument in ("-e", "-U"):
            continue
        found = _REQUIREMENT.fullmatch(argument)
        assert found is not None, f"pip cannot install {argument!r}"
        wanted = set((found["extras"] or "").split(",")) - {""}
        missing = wanted - _extras(found["name"])
        assert not missing, f"{found['name']} has no extras {missing}"


def _extras(name: str) -> set[str]:
    if name == "girder_dask" or name == ".":
        setup = configparser.ConfigParser(interpolation=None)
        setup.read(_ROOT / "setup.cfg")
        return set(setup["options.extras_require"])
    if name.startswith("."):
        project = (_ROOT / name / "pyproject.toml").read_text()
        section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
        return set(re.findall(r"^(\w+) =", section, re.MULTILINE))
    return set()


def _check_pytest(arguments: Sequence[str]) -> None:
    _check_paths([a for a in arguments if not a.startswith("-")])


def _check_paths(words: Sequence[str]) -> None:
    ours = ("deploy/", "docs/", "examples/", "girder_dask/", "scripts/", "tests/")
    for word in words:
        if word.startswith(ours):
            assert (_ROOT / word).exists(), f"There is no {word} in the project."


def _check_click(name: str, arguments: list[str]) -> None:
    command: click.Command = _program(name)
    path = name
    while isinstance(command, click.Group):
        while arguments and arguments[0].startswith("-"):
            _check_option(command, path, arguments.pop(0))
        if not arguments:
            return
        word = arguments.pop(0)
        found = command.commands.get(word)
        assert found is not None, f"{path} has no command {word!r}"
        command, path = found, f"{path} {word}"
    for argument in arguments:
        if argument.startswith("-"):
            _check_option(command, path, argument)


def _check_option(command: click.Command, path: str, argument: str) -> None:
    option = argument.partition("=")[0]
    names = {n for p in command.params for n in (*p.opts, *p.secondary_opts)}
    names |= {"-h", "--help"}
    assert option in names, f"{path} has no option {option}"


def _program(name: str) -> click.Command:
    if name == "girder-dask":
        from girder_dask.cli import main

        return main
    if name == "girder":
        from girder.cli import serve

        return click.Group("girder", {"serve": serve.main})
    from distributed.cli import dask_scheduler, dask_worker

    return click.Group("dask", {"scheduler": dask_scheduler.main, "worker": dask_worker.main})
