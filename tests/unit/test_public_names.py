"""Exported names are named after the public module that exports them."""

from __future__ import annotations

import importlib
import inspect
import pickle
import typing
from pathlib import Path
from types import FunctionType
from typing import Any

import cloudpickle
import pytest

from tests.support.public_api import public_api

MODULES = (
    "girder_dask",
    "girder_dask.config",
    "girder_dask.credential",
    "girder_dask.describing",
    "girder_dask.entrypoint",
    "girder_dask.errors",
    "girder_dask.jobs",
    "girder_dask.standalone",
    "girder_dask.testing",
    "girder_dask.transforms",
)
ERRORS = importlib.import_module("girder_dask.errors")


def exported() -> list[tuple[str, str, Any]]:
    found = []
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, (type, FunctionType)):
                is_error = name in ERRORS.__all__
                found.append((ERRORS.__name__ if is_error else module.__name__, name, value))
    return found


API = Path(__file__).parents[1] / "data" / "public_api.txt"
EXPORTED = exported()
IDS = [f"{module}.{name}" for module, name, _ in EXPORTED]


@pytest.mark.parametrize(("module", "name", "value"), EXPORTED, ids=IDS)
def test_exported_names_are_pinned_to_their_public_module(
    module: str, name: str, value: Any
) -> None:
    assert (value.__module__, value.__qualname__) == (module, name)
    for pickled in (pickle.dumps(value), cloudpickle.dumps(value)):
        assert pickle.loads(pickled) is value
        assert module.encode() in pickled


@pytest.mark.parametrize(("module", "name", "value"), EXPORTED, ids=IDS)
def test_exported_names_can_be_inspected(module: str, name: str, value: Any) -> None:
    assert inspect.getmodule(value) is importlib.import_module(module)
    assert name in repr(value)
    assert inspect.getdoc(value)
    if isinstance(value, FunctionType):
        inspect.signature(value)
        assert f"def {name}" in inspect.getsource(value)
    else:
        typing.get_type_hints(value)


def test_what_is_neither_class_nor_function_is_known() -> None:
    others = {
        name
        for module in map(importlib.import_module, MODULES)
        for name in module.__all__
        if not isinstance(getattr(module, name), (type, FunctionType))
    }
    fixtures = {"girder_admin", "girder_stack", "girder_user"}
    assert others - fixtures == {
        "FINAL",
        "HANDLER",
        "NAME",
        "PREDECESSORS",
        "__version__",
        "app",
        "types",
    }


def test_public_names_have_the_signatures_of_the_release() -> None:
    """What changes here changes for users: name it in CHANGELOG.md, and then write the file anew.

    python tests/support/public_api.py > tests/data/public_api.txt
    """
    assert public_api() == API.read_text().splitlines()
