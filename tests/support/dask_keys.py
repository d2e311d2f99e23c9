"""Check that keys of Dask's configuration exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["check", "check_variable", "defaults", "leaves"]

_OURS = Path(__file__).parents[2] / "girder_dask" / "girder_dask.yaml"


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested mappings, joined with dots, and their values."""
    for key, value in tree.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from leaves(value, here)
        else:
            yield here, value


def defaults() -> dict[str, Any]:
    """Return the keys that girder_dask reads, and their defaults."""
    return dict(leaves(yaml.safe_load(_OURS.read_text())))


def check(block: str) -> None:
    """Raise AssertionError if a block of YAML sets a key that nothing reads."""
    import dask.config
    import distributed  # noqa: F401 - it adds its defaults

    known = set(defaults()) | {key for key, _ in leaves(dask.config.config)}
    for key, _ in leaves(yaml.safe_load(block)):
        assert key.replace("_", "-") in {k.replace("_", "-") for k in known}, f"There is no {key}."


def check_variable(name: str) -> None:
    """Raise AssertionError if a variable ``DASK_…`` sets a key that nothing reads."""
    key = name.removeprefix("DASK_").lower().replace("__", ".").replace("_", "-")
    assert key in defaults(), f"{name} sets {key}, which nothing reads."
