"""What the pages on operation and troubleshooting say of versions, figures and messages."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from functools import cache

import pytest

from benchmarks import report
from tests.docs.test_pages import DOCS, code, table
from tests.support.snippets import ROOT

OPERATING = DOCS / "operating.md"
TROUBLESHOOTING = DOCS / "troubleshooting.md"
_ELLIPSIS = "…"
#: What stands for a value in a message of the code.
_VALUE = "\0"


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_versions_are_those_of_the_metadata() -> None:
    rows = dict(table(OPERATING, "what", "versions"))
    pythons = re.findall(r"Python :: (3\.\d+)", setup()["metadata"]["classifiers"])
    assert rows["Python"].split(", ") == pythons
    (dask,) = re.findall(r"^dask>=(\S+)$", setup()["options"]["install_requires"], re.MULTILINE)
    assert rows["Dask and distributed"].startswith(f"{dask} or later")
    extra = setup()["options.extras_require"]["girder"]
    assert set(re.findall(r">=(\S+)", extra)) == {rows["Girder with girder-jobs"].split()[0]}


def measured() -> dict[str, str]:
    """Return the medians of girder_dask by case and figure, as the tables show them."""
    lines = (report.RESULTS / "latest.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {f"`{r[0]}`, {r[2]}": r[3] for r in rows if len(r) == 5 and r[1] == "girder_dask"}


def test_capacity_has_the_figures_that_were_measured() -> None:
    found = measured()
    rows = table(OPERATING, "figure", "case", "value")
    assert len(rows) > 8
    assert {case: value for _, case, value in rows} == {case: found[case] for _, case, _ in rows}


def test_growth_for_a_million_jobs_follows_from_that_for_each() -> None:
    units = {"bytes": 1, "kB": 1e3, "GB": 1e9}

    def amount(text: str) -> float:
        number, unit, *_ = text.split()
        return float(number) * units[unit]

    for what, each, million in table(OPERATING, "collection", "for each job", "for a million jobs"):
        times = 2 if "both" in what else 1
        assert amount(million) == pytest.approx(times * 1e6 * amount(each), rel=0.02)


def messages() -> Iterator[str]:
    """Yield the messages that the page on troubleshooting shows as code."""
    for line in TROUBLESHOOTING.read_text().splitlines():
        if not line.startswith("|") or line.startswith("| ---"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        # The message is in the first cell, and after the name of a log in the second.
        shown = cells[1] if len(cells) == 4 else cells[0]
        yield from code(shown)


@cache
def texts() -> list[str]:
    """Return all strings of the package, with a mark for each value that is put into them."""
    found: list[str] = []
    for path in (ROOT / "girder_dask").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
                found.append(
                    "".join(str(p.value) if isinstance(p, ast.Constant) else _VALUE for p in parts)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[-\d.,]*[sdrfg]", _VALUE, node.value))
    return found


def is_in_the_code(message: str) -> bool:
    """Return True if the code has a message, in which ``…`` stands for anything."""
    parts = [re.escape(part.strip()) for part in message.split(_ELLIPSIS) if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def test_page_on_troubleshooting_has_messages() -> None:
    assert len(list(messages())) > 25


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_messages_are_those_of_the_code(message: str) -> None:
    assert is_in_the_code(message)


@pytest.mark.parametrize("message", ["no worker is disconnected", "Worker … was found …"])
def test_a_message_that_the_code_does_not_have_is_found(message: str) -> None:
    assert not is_in_the_code(message)
