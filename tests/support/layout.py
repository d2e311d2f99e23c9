"""The table of modules in docs/architecture.md: each module with its first docstring line.

``python -m tests.support.layout`` writes it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGE = _ROOT / "girder_dask"
PAGE = _ROOT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- layout -->\n", "<!-- end of layout -->\n"


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n")[0]


def _rows() -> Iterator[str]:
    packages = sorted(path.parent for path in _PACKAGE.rglob("__init__.py"))
    for package in packages:
        here = package.relative_to(_ROOT)
        yield f"| **`{here}/`** | {_first_line(package / '__init__.py')} |"
        for module in sorted(package.glob("*.py")):
            if module.stem not in ("__init__", "__main__", "_version"):
                yield f"| `{here}/{module.stem}` | {_first_line(module)} |"


def table() -> str:
    """Return the table."""
    return "\n".join(["| module | what it is |", "| --- | --- |", *_rows()]) + "\n"


def shown() -> str:
    """Return the table that the page has."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}{table()}{_END}{rest.partition(_END)[2]}")
