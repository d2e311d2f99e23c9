"""The access matrix of actors, routes and owners: docs/security.md shows the measured one.

``make matrix`` writes what is measured into that page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.rest_site import ask, call
from tests.support.security_site import Attack, Victim

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
HEADING = "## Actors and routes"

ACTORS = {
    "anonymous": "anonymous",
    "user": "user",
    "key": "key `dask.jobs.submit`",
    "job": "job",
    "scheduler": "scheduler",
    "administrator": "administrator",
}
WHOSE = {
    "own": "own",
    "same": "another of its owner",
    "theirs": "of another user",
    "public": "of another user, public",
}

#: The routes about one job or file: the request, and the sign of success in the answer.
OF_ONE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GET dask/job/{id}/log": ("GET", "dask/job/{job}/log", {}),
    "GET dask/job/{id}/result": ("GET", "dask/job/{job}/result", {}),
    "POST dask/job/states": ("POST", "dask/job/states", {"json": {"ids": ["{job}"]}}),
    "POST dask/job/results": ("POST", "dask/job/results", {"json": {"ids": ["{job}"]}}),
    "PUT dask/job/{id}/cancel": ("PUT", "dask/job/{job}/cancel", {}),
    "GET dask/job/{id}/uploads": ("GET", "dask/job/{job}/uploads", {}),
    "POST dask/job/{id}/upload": ("POST", "dask/job/{job}/upload?name=none", {}),
    "POST dask/job/{id}/begin": ("POST", "dask/job/{job}/begin?attempt=1&run=r&worker=w", {}),
    "GET job/{id}/artifact": ("GET", "job/{job}/artifact", {}),
    "POST job/{id}/artifact": ("POST", "job/{job}/artifact?name=new&size=0", {}),
    "GET job/{id}/artifact/{name}": ("GET", "job/{job}/artifact/report.txt", {}),
    "DELETE job/{id}/artifact/{name}": ("DELETE", "job/{job}/artifact/report.txt", {}),
}
SPOILING = {"PUT dask/job/{id}/cancel", "DELETE job/{id}/artifact/{name}"}
#: Those that are about no job. What they are sent is refused only after the rights were looked at.
OF_NONE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GET dask/ping": ("GET", "dask/ping", {}),
    "GET dask/status": ("GET", "dask/status", {}),
    "GET dask/credential": ("GET", "dask/credential", {}),
    "GET dask/metrics": ("GET", "dask/metrics", {}),
    "POST dask/job": ("POST", "dask/job", {"json": {"submissions": [call("a:b")]}}),
    "POST dask/job/updates": ("POST", "dask/job/updates", {"json": {}}),
    "POST dask/job/claim": ("POST", "dask/job/claim", {"json": {"limit": 0}}),
    "POST dask/lease/release": ("POST", "dask/lease/release", {"json": {"scheduler": "none"}}),
    "POST dask/prune": ("POST", "dask/prune", {"json": {}}),
}
FILE = "GET dask/file/{id}/path"


class Matrix:
    """Measures what each actor may do."""

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        self.attack = attack = Attack(stack)
        self.key = self._key(attack.attacker)
        self.jobs: dict[str, Victim] = {}
        self.makers: dict[str, Callable[[], Victim]] = {
            "own": lambda: attack.make_job(attack.attacker),
            "same": lambda: attack.make_job(attack.attacker),
            "theirs": lambda: attack.make_job(attack.victim),
            "public": lambda: attack.make_job(attack.victim, public=True),
        }
        for whose, make in self.makers.items():
            self.jobs[whose] = make()
        self.files = {
            "own": stack.upload(b"x", "x", client=attack.attacker.client)["_id"],
            "theirs": stack.upload(b"x", "x", client=attack.victim.client)["_id"],
        }

    def _key(self, user: Any) -> str:
        scope = {"name": "notebook", "scope": '["dask.jobs.submit"]'}
        key = user.client.post("api_key", parameters=scope)["key"]
        answer = self.stack.admin.post("api_key/token", parameters={"key": key})
        return str(answer["authToken"]["token"])

    def token(self, actor: str) -> str | None:
        if actor == "key":
            return self.key
        if actor == "job":
            return self.jobs["own"].token
        return self.attack.token_of({"user": "owner"}.get(actor, actor))

    def rows(self) -> Iterator[tuple[str, str, list[str]]]:
        for route, request in OF_NONE.items():
            yield route, "", [self.cell(actor, route, *request) for actor in ACTORS]
        for route, request in OF_ONE.items():
            for whose, shown in WHOSE.items():
                cells = [self.cell(a, route, *request, whose=whose) for a in ACTORS]
                yield route, shown, cells
        for whose, file in self.files.items():
            path = f"dask/file/{file}/path"
            cells = [self.cell(actor, FILE, "GET", path, {}, file=whose) for actor in ACTORS]
            yield FILE, WHOSE[whose].replace("of another", "file of another"), cells

    def cell(
        self,
        actor: str,
        route: str,
        method: str,
        path: str,
        options: dict[str, Any],
        whose: str = "",
        file: str = "",
    ) -> str:
        has_own = actor in ("user", "key", "job")
        if ("own" in (whose, file) and not has_own) or (whose == "same" and actor != "job"):
            return ""
        job = self.jobs[whose].id if whose else ""
        if whose and "json" in options:
            options = {"json": {"ids": [job]}}
        path = path.replace("{job}", job)
        answer = ask(self.stack, method, path, token=self.token(actor), **options)
        assert answer.status_code < 500, answer.text
        allowed = answer.status_code not in (401, 403)
        if allowed and whose and "json" in options:
            allowed = job in answer.text  # those that may not be read are left out
        if allowed and route in SPOILING:
            self.jobs[whose] = self.makers[whose]()
        return "yes" if allowed else "no"


def table(rows: Iterator[tuple[str, str, list[str]]]) -> str:
    lines = [
        "| route | whose job | " + " | ".join(ACTORS.values()) + " |",
        "| --- " * (len(ACTORS) + 2) + "|",
    ]
    before = ""
    for route, whose, cells in rows:
        name = "" if route == before else f"`{route}`"
        before = route
        lines.append(f"| {name} | {whose} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(text: str) -> str:
    found = re.search(rf"{HEADING}\n.*?\n(\|.*?\|)\n\n", text, re.DOTALL)
    assert found, f"docs/security.md has no table under '{HEADING}'"
    return found[1]


@pytest.fixture(scope="module")
def measured(girder_stack: Any) -> str:
    return table(Matrix(girder_stack).rows())


def test_the_page_says_what_is_allowed(measured: str) -> None:
    text = PAGE.read_text()
    if os.environ.get("GIRDER_DASK_WRITE_MATRIX"):
        PAGE.write_text(text.replace(shown(text), measured))
    assert shown(PAGE.read_text()) == measured, f"Run 'make matrix'. Measured:\n{measured}"


def test_it_names_all_routes(girder_stack: Any, measured: str) -> None:
    paths = ask(girder_stack, "GET", "describe").json()["paths"]
    ours = {
        f"`{method.upper()} {path.lstrip('/')}`"
        for path, operations in paths.items()
        for method in operations
        if re.search("/dask|/artifact", path)
    }
    assert ours == set(re.findall("`[A-Z]+ .*?`", measured))


def test_what_nobody_may_do_is_not_allowed_by_accident(measured: str) -> None:
    """Rules that hold independently of the page."""
    cells = {}
    route = ""
    for line in measured.splitlines()[2:]:
        name, whose, *found = [part.strip() for part in line.strip("|").split("|")]
        route = name.strip("`") or route
        cells[route, whose] = dict(zip(ACTORS, found, strict=True))
    for (route, whose), found in cells.items():
        if whose == WHOSE["theirs"]:
            assert {found[a] for a in ("anonymous", "user", "key", "job")} == {"no"}, route
        if whose == WHOSE["public"] and not route.startswith("GET"):
            reads = route in ("POST dask/job/states", "POST dask/job/results")
            assert reads or found["user"] == found["job"] == "no", route
    for route in ("POST dask/job/updates", "POST dask/job/claim", "GET dask/credential"):
        assert [a for a, cell in cells[route, ""].items() if cell == "yes"] == ["scheduler"], route
