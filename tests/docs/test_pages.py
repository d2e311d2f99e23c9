"""What the pages say of the code in words, tables and pictures, besides their snippets."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sybil import Document

import girder_dask
from benchmarks import pages, plots, profiles, report
from benchmarks.cases import CASES
from tests.support import commands, dask_keys, layout, public_api
from tests.support.snippets import ROOT, blocks, read_blocks

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")]


def table(page: Path, *header: str) -> list[list[str]]:
    """Return the rows of the table of a page that has this header."""
    lines = page.read_text().splitlines()
    for n, line in enumerate(lines):
        if cells(line) == list(header):
            rows = lines[n + 2 :]
            end = next((i for i, row in enumerate(rows) if not row.startswith("|")), len(rows))
            return [cells(row) for row in rows[:end]]
    raise AssertionError(f"{page.name} has no table {' | '.join(header)}.")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def code(cell: str) -> list[str]:
    """Return what is written as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


# -- settings --------------------------------------------------------------------------------


def test_every_key_of_the_configuration_is_in_the_table_with_its_default() -> None:
    rows = table(DOCS / "operators.md", "key", "default", "on", "meaning")
    shown = {code(row[0])[0]: code(row[1])[0] for row in rows}
    real = {k: "null" if v is None else str(v) for k, v in dask_keys.defaults().items()}
    assert shown == real


def test_every_setting_of_girder_is_in_the_table_with_its_default() -> None:
    from girder.utility import setting_utilities

    from girder_dask.plugin import settings

    keys = {
        settings.SCHEDULER_ADDRESS,
        settings.API_URL,
        settings.DIRECT_PATH,
        settings.SUBMITTERS,
        settings.ALLOW_TASKS,
        settings.MAX_PRIORITY,
        settings.RETENTION,
    }
    assert keys == {
        value
        for name, value in vars(settings).items()
        if name.isupper() and isinstance(value, str) and value.startswith("dask.")
    }
    rows = table(DOCS / "operators.md", "setting", "default", "meaning")
    shown = {code(row[0])[0]: row[1].strip("`") for row in rows}
    words = {"": "empty", "False": "false", "True": "true"}
    assert shown == {
        key: words.get(default := str(setting_utilities.getDefaultFunction(key)()), default)  # type: ignore[misc]
        for key in keys
    }


def is_read(key: str) -> bool:
    """Say whether code of ours names a key, without ``girder.``, in quotation marks."""
    texts = (path.read_text() for path in (ROOT / "girder_dask").rglob("*.py"))
    return any(f'"{key}"' in text for text in texts)


def test_what_is_said_to_be_unused_is_unused_and_nothing_else() -> None:
    rows = table(DOCS / "operators.md", "key", "default", "on", "meaning")
    for row in rows:
        key = code(row[0])[0]
        assert is_read(key.removeprefix("girder.")) != row[-1].startswith("not used yet"), key


def test_every_option_of_pytest_is_in_the_table() -> None:
    from girder_dask import testing

    known = dict(
        re.findall(r'addini\(\s*"(\w+)",.*?default="(\d+)"', inspect.getsource(testing), re.DOTALL)
    )
    rows = table(DOCS / "testing.md", "option", "default", "meaning")
    assert {code(row[0])[0]: code(row[1])[0] for row in rows} == known


def test_every_fixture_is_in_the_table() -> None:
    from girder_dask import testing

    rows = table(DOCS / "testing.md", "fixture", "scope", "what it is")
    assert {code(row[0])[0] for row in rows} == set(testing.__all__)


def test_every_member_of_the_stack_in_the_table_exists() -> None:
    from girder_dask.testing.stack import TestStack

    for row in table(DOCS / "testing.md", "`girder_stack.…`", "what it does"):
        for shown in code(row[0]):
            name, _, parameters = shown.partition("(")
            assert hasattr(TestStack, name), name
            given = {p.strip(" )*").partition("=")[0] for p in parameters.split(",")} - {""}
            if given:
                assert given <= inspect.signature(getattr(TestStack, name)).parameters.keys()


# -- names of the API ------------------------------------------------------------------------


def test_the_states_are_those_of_the_code() -> None:
    from girder_dask.jobs import JobStatus

    rows = table(DOCS / "plugin-authors.md", "state", "number", "meaning")
    assert {row[0]: int(row[1]) for row in rows} == {s.name: s.value for s in JobStatus}


def test_the_options_of_the_decorator_are_those_of_the_code() -> None:
    from girder_dask.tasks.decorator import task
    from girder_dask.tasks.options import TaskSettings
    from girder_dask.tasks.start_time import START_OPTIONS

    page = DOCS / "task-authors.md"
    rows = table(page, "option", "default", "meaning")
    documented = {code(row[0])[0] for row in rows}
    settings = set(inspect.signature(TaskSettings).parameters) - {"handler", *START_OPTIONS}
    assert documented == settings
    defaults = TaskSettings()
    for row in rows:
        name, default = code(row[0])[0], code(row[1])
        if default:
            assert repr(getattr(defaults, name)) == default[0], name
        else:
            assert not getattr(defaults, name), name
    assert all(f"    {name}\n" in (task.__doc__ or "") for name in documented)


def test_the_options_of_a_call_are_those_of_the_code() -> None:
    from girder_dask.tasks import task as _  # noqa: F401 - the module below is hidden by the decorator
    from girder_dask.tasks.options import CALL_OPTIONS

    rows = table(DOCS / "plugin-authors.md", "option", "default", "meaning")
    assert {code(row[0])[0] for row in rows} == set(CALL_OPTIONS)


def test_the_members_of_a_result_are_those_of_the_code() -> None:
    rows = table(DOCS / "plugin-authors.md", "name", "what it is")
    documented = {name.partition("(")[0] for row in rows for name in code(row[0])}
    public = {name for name in dir(girder_dask.JobResult) if not name.startswith("_")}
    assert documented - {"result['title']"} == public - {"task_id"}


def test_the_members_of_a_running_job_exist() -> None:
    from girder_dask.tasks.running_job import JobManager, Request

    job = girder_dask.current_job()
    parts: dict[str, Any] = {"job_manager": JobManager, "request": Request}
    for row in table(DOCS / "task-authors.md", "name", "what it is"):
        for name in code(row[0]):
            first, _, second = name.partition("(")[0].partition(".")
            assert hasattr(job, first), name
            assert not second or hasattr(parts[first], second), name


def test_the_routes_are_those_of_the_plugin() -> None:
    from girder_dask.plugin.backend import GirderBackend
    from girder_dask.plugin.rest import artifacts, attempts, jobs, logs, metrics, scheduler, uploads
    from girder_dask.plugin.rest import files as file_rest

    class Mounted:
        """Stands for a resource, and notes its routes."""

        def __init__(self, name: str) -> None:
            self.name = name
            self.made: set[str] = set()

        def route(self, method: str, path: tuple[str, ...], handler: Any) -> None:
            if handler.description is not None:
                self.made.add("/".join([f"{method} {self.name}", *path]))

    dask, job = Mounted("dask"), Mounted("job")
    made = re.findall(
        r'routes\.add\(self, "(\w+)", \(([^)]*)\)', inspect.getsource(scheduler.DaskResource)
    )
    for method, path in made:
        dask.made.add("/".join([f"{method} dask", *re.findall(r"[:\w]+", path)]))
    jobs.mount(dask, GirderBackend())  # type: ignore[arg-type]
    file_rest.mount(dask)  # type: ignore[arg-type]
    logs.mount(dask)  # type: ignore[arg-type]
    attempts.mount(dask)  # type: ignore[arg-type]
    metrics.mount(dask, GirderBackend())  # type: ignore[arg-type]
    uploads.mount(dask)  # type: ignore[arg-type]
    artifacts.mount(job)  # type: ignore[arg-type]
    rows = table(DOCS / "plugin-authors.md", "route", "who", "what")
    assert {code(row[0])[0] for row in rows} == dask.made | job.made


def test_transforms_in_the_tables_are_all_that_there_are() -> None:
    from girder_dask import transforms

    page = DOCS / "task-authors.md"
    rows = table(page, "in `delay()`", "the function gets") + table(
        page, "hook", "the function returns"
    )
    abstract = {"Transform", "ResultTransform"}
    classes = {n for n in transforms.__all__ if inspect.isclass(getattr(transforms, n))}
    assert {code(row[0])[0].partition("(")[0] for row in rows} == classes - abstract


# -- architecture ----------------------------------------------------------------------------


def test_cases_of_girder_worker_in_the_table_are_those_that_are_tested() -> None:
    directory = ROOT / "tests" / "integration" / "celery"
    known = {
        name: set(re.findall(r"^def (test_\w+)", (directory / name).read_text(), re.MULTILINE))
        for name in ("test_girder_worker_cases.py", "test_docker_run.py")
    }
    rows = table(DOCS / "girder-worker.md", "case of girder_worker", "cases", "test", "on Dask")
    shown = {name for row in rows for name in code(row[2])}
    assert shown <= set().union(*known.values())
    assert known["test_girder_worker_cases.py"] <= shown
    assert all(row[3].startswith("passes") for row in rows)


def test_layout_table_is_that_of_the_code() -> None:
    assert layout.shown() == layout.table(), "make layout writes it"


def test_the_collections_are_those_of_the_code() -> None:
    rows = table(DOCS / "architecture.md", "collection", "what", "until")
    plugin = [path.read_text() for path in (ROOT / "girder_dask" / "plugin").rglob("*.py")]
    ours = set(re.findall(r'self\.name = "(\w+)"', "".join(plugin)))
    assert {code(row[0])[0] for row in rows} == ours | {"job", "token"}


# -- the README ------------------------------------------------------------------------------


def test_the_demo_prints_what_the_readme_shows(girder_stack: Any, girder_user: Any) -> None:
    """The same job, on the stack of the tests, and shown as the demo shows it."""
    from skimage import data

    from girder_dask.cli.demo.job import JobView
    from girder_dask.cli.demo.view import PlainView

    (shown,) = (b for b in blocks(ROOT / "README.md", "text") if "QUEUED" in b)
    client = girder_user.client
    file = girder_stack.upload(f"{data.data_dir}/coins.png", client=client)
    job = client.post(
        f"coins/{file['_id']}/count", parameters={"folderId": girder_user.folder["_id"]}
    )
    output = io.StringIO()
    PlainView(output).show(JobView.from_document(girder_stack.wait(job["_id"])))
    answer = client.getItem(file["itemId"])["meta"]
    said = {without_times(line) for line in output.getvalue().splitlines()}
    said |= {"", f"Uploaded {file['name']} ({file['size']} bytes)"}
    task = (ROOT / "examples" / "coins" / "girder_coins" / "tasks.py").read_text()
    for line in map(without_times, shown.splitlines()):
        if line.startswith("Answer"):
            found = re.fullmatch(r"Answer +(\d+) objects \((.+)\)", line)
            assert found is not None
            told = dict(part.rsplit(" ", 1) for part in found[2].split(", "))
            told["objects"] = found[1]
            assert told == {k.replace("_", " "): str(v) for k, v in answer.items()}
        elif step := re.fullmatch(r"\s+(\d+)% (.+)", line):
            # Which steps are seen depends on when one looks; each has its place in the task.
            assert line in said or f'current={int(step[1]) // 25}, message="{step[2]}"' in task
        else:
            assert line in said, line
    assert [s for s in shown.split() if s.isupper()] == [
        girder_dask.jobs.JobStatus(stamp["status"]).name
        for stamp in girder_stack.job(job["_id"])["timestamps"]
    ]


def without_times(line: str) -> str:
    return re.sub(r"^ +\d+\.\d{3} s", "", line).rstrip()


def test_the_picture_is_a_picture() -> None:
    assert (DOCS / "images" / "job-page.png").read_bytes().startswith(b"\x89PNG")


# -- measurements ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_the_pages_show_what_was_measured_last(page: Path) -> None:
    assert page.read_text() == pages.filled(page)


def test_the_tables_beside_the_results_are_made_of_them() -> None:
    measured = json.loads((report.RESULTS / "latest.json").read_text())
    assert (report.RESULTS / "latest.md").read_text() == report.tables(measured)


def test_every_case_and_every_file_of_results_is_in_the_tables() -> None:
    page = DOCS / "performance.md"
    rows = table(page, "case", "what is measured")
    assert [code(row[0])[0] for row in rows] == [case.name for case in CASES]
    files = {name for row in table(page, "file", "what it is") for name in code(row[0])}
    pictures = {f"{name}.svg" for name in plots.PICTURES}
    assert files == {"latest.json", "latest.md", profiles.FILE.name, *pictures}


# -- all pages -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "line",
    [
        "girder-dask demo --quick",
        "girder-dask bake",
        "dask worker tcp://host:8786 --frobnicate",
        "make coffee",
        "make bench ARGS='map --loops 3'",
        "make bench ARGS=coffee",
        "pip install 'girder_dask[bar]'",
        "DASK_GIRDER__API_ULR=x dask scheduler",
        "frobnicate",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        commands.check(line)


def test_a_key_that_does_not_exist_is_found() -> None:
    with pytest.raises(AssertionError):
        dask_keys.check("girder:\n  api-ulr: x\n")


@pytest.mark.parametrize("info", ["", "ruby", "python grider"])
def test_a_block_that_no_test_checks_is_found(tmp_path: Path, info: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{info}\n1 / 0\n```\n")
    document = Document(page.read_text(), str(page))
    (region,) = read_blocks(document)
    with pytest.raises(AssertionError, match="No test checks"):
        region.evaluator(region)


def test_commands_for_contributors_exist() -> None:
    for block in blocks(ROOT / "CONTRIBUTING.md", "sh"):
        commands.check(block)


def test_the_version_is_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([^\]]+)\] - (Unreleased|\d{4}-\d{2}-\d{2})$", text, re.MULTILINE)
    assert versions[0][0] == girder_dask.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the directory of the HTML pages, and what went wrong when they were built."""
    place = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(place / "doctrees"), str(DOCS), str(place / "html")],
        capture_output=True,
        text=True,
    )
    return place / "html", done.stderr if done.returncode else ""


# The first of these tests has the pages built.
@pytest.mark.timeout(500)
def test_sphinx_builds_the_pages_without_a_warning(built: tuple[Path, str]) -> None:
    pages_directory, problems = built
    assert problems == ""
    assert "count_coins" in (pages_directory / "testing.html").read_text()


# What is neither a class, a function nor a constant of a module.
NAMED_IN_WORDS = {"__version__", "girder_admin", "girder_stack", "girder_user", "types"}


@pytest.mark.timeout(500)
@pytest.mark.parametrize("module", public_api.MODULES)
def test_api_page_documents_each_public_name(built: tuple[Path, str], module: str) -> None:
    page = (built[0] / "api.html").read_text()
    documented = {name.rpartition(".")[2] for name in re.findall(r'id="(girder_dask[\w.]+)"', page)}
    documented |= {name for name in NAMED_IN_WORDS if re.search(rf"\b{name}\b</span>", page)}
    names = set(importlib.import_module(module).__all__)
    assert names - documented == set()


# -- docstrings ------------------------------------------------------------------------------

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(girder_dask.__path__, "girder_dask.")
    if "main" not in m.name
)


@pytest.mark.parametrize("name", ["girder_dask", *MODULES])
def test_the_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        # A line that opens a block may be followed by one that closes it with ``...``.
        with contextlib.redirect_stderr(io.StringIO()):
            runner.run(test, out=said.write)
    assert runner.failures == 0, said.getvalue()
