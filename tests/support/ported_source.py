"""Conversion of a package for girder_dask into one for girder_worker: only imports change.

The imports are replaced as in the table on the page on porting, read from right to left.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

__all__ = ["IMPORTS", "rewrite", "rewrite_package", "without_imports"]

ROOT = Path(__file__).parents[2]

_ROW = re.compile(r"^\| `from (\S+) import (\w+)` \| `from (\S+) import (\w+)` \|", re.MULTILINE)

#: Module and name in girder_worker, by module and name in girder_dask. If the table has several,
#: the first.
IMPORTS: dict[tuple[str, str], tuple[str, str]] = {}
for _old, _name, _new, _new_name in _ROW.findall((ROOT / "docs" / "porting.md").read_text()):
    IMPORTS.setdefault((_new, _new_name), (_old, _name))


def _from_girder_dask(source: str) -> list[ast.ImportFrom]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("girder_dask") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("girder_dask"):
            found.append(node)
    return sorted(found, key=lambda node: node.lineno, reverse=True)


def rewrite(source: str) -> str:
    """Return a module that imports from girder_worker what it imported from girder_dask."""
    lines = source.splitlines(keepends=True)
    for node in _from_girder_dask(source):
        new = []
        for alias in node.names:
            module, name = IMPORTS[str(node.module), alias.name]
            as_name = f" as {alias.asname or alias.name}" * (name != (alias.asname or alias.name))
            new.append(f"{' ' * node.col_offset}from {module} import {name}{as_name}\n")
        lines[node.lineno - 1 : node.end_lineno] = new
    return "".join(lines)


def without_imports(source: str) -> str:
    """Return a module without its import statements."""
    lines = source.splitlines(keepends=True)
    for node in sorted(ast.walk(ast.parse(source)), key=lambda n: getattr(n, "lineno", 0))[::-1]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines)


def rewrite_package(package: Path, directory: Path) -> Path:
    """Write a package for girder_worker into ``directory``, and return its path."""
    copy = directory / package.name
    copy.mkdir()
    for module in package.glob("*.py"):
        (copy / module.name).write_text(rewrite(module.read_text()))
    return copy
