"""Schemathesis over all routes of the plugin, as each kind of actor.

Nothing is answered with 500, and nothing of another user changes.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.support.rest_site import ask
from tests.support.security_site import Attack

# Of each kind, for each of the routes and actors.
EXAMPLES = 5

#: What Girder answers with 500 before our code is reached, by its cause: the query and the type of
#: the body. Schemathesis sends none of these; each is asked of a route of Girder, too.
BEFORE_US = {
    "a body of parts without a boundary": ("", "multipart/form-data"),
    "a body of parts with an empty boundary": ("", "multipart/form-data; boundary="),
    "a form of an unknown charset": ("", "application/x-www-form-urlencoded; charset=bogus"),
    "a parameter named self": ("?self=1", "application/json"),
}


@pytest.fixture(scope="module")
def attack(girder_stack: Any) -> Attack:
    return Attack(girder_stack)


@pytest.fixture(scope="module")
def document(girder_stack: Any, attack: Attack) -> dict[str, Any]:
    """Return the OpenAPI document of our routes, with existing ids."""
    document = ask(girder_stack, "GET", "describe").json()
    paths = {p: ops for p, ops in document["paths"].items() if re.search("/dask|/artifact", p)}
    for operations in paths.values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                pin(parameter, attack)
            operation.pop("security", None)
    ids = [attack.own.id, attack.theirs.id, attack.public.id, "0" * 24, "x"]
    definitions = document["definitions"]
    definitions["DaskIds"]["properties"]["ids"]["items"]["enum"] = ids
    update = definitions["DaskUpdates"]["properties"]["updates"]["items"]
    update["properties"]["id"]["enum"] = ids
    for name in ("DaskUpdates", "DaskClaim"):
        definitions[name]["properties"]["scheduler"]["enum"] = ["schemathesis"]
    # What is claimed is taken from the scheduler of the other tests.
    claim = definitions["DaskClaim"]["properties"]
    claim["limit"]["maximum"] = 1
    # Who names how often the lease was renewed takes it from that scheduler, too.
    claim["lease"]["properties"]["take_over"]["minimum"] = 10**9
    return {**document, "paths": paths}


def pin(parameter: dict[str, Any], attack: Attack) -> None:
    names = {
        "id": [attack.own.id, attack.theirs.id, attack.public.id, "0" * 24, "x"],
        "name": ["report.txt", "none.txt", "a/b", "..", "ü\x7f"],
    }
    if parameter["in"] == "path" and parameter["name"] in names:
        parameter["enum"] = names[parameter["name"]]


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len(operations) >= 19
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    # Each parameter of a path is declared, and each declared one is in its path.
    for path, found in document["paths"].items():
        for operation in found.values():
            declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert declared == set(re.findall("{(.*?)}", path)), path


@pytest.fixture(scope="module")
def cases(document: dict[str, Any]) -> list[Any]:
    """Return requests of all kinds to all routes; the same for each actor."""
    found: list[Any] = []
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        for mode in GenerationMode:
            collect(result.ok().as_strategy(generation_mode=mode), found)
    return found


def collect(strategy: Any, found: list[Any]) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def add(case: Any) -> None:
        found.append(case)

    # A route with nothing to get wrong has no wrong requests.
    with contextlib.suppress(Unsatisfiable):
        add()


@pytest.mark.parametrize("cause", BEFORE_US)
def test_what_girder_answers_with_500_before_our_code(girder_stack: Any, cause: str) -> None:
    query, kind = BEFORE_US[cause]
    headers = {"Content-Type": kind}
    for route in ("folder", "dask/job/states"):
        answer = ask(girder_stack, "POST", route + query, data=b"a=1", headers=headers)
        assert answer.status_code == 500, route
        assert "Powered by" in answer.text, "CherryPy has answered"


@pytest.mark.parametrize("actor", ["anonymous", "user", "owner", "job", "scheduler"])
def test_no_request_is_answered_with_500_or_changes_what_is_of_others(
    girder_stack: Any, attack: Attack, cases: list[Any], actor: str
) -> None:
    token = attack.token_of(actor)
    headers = {"Girder-Token": token} if token else {}
    before = attack.state()
    seen = set()
    with requests.Session() as session:
        for case in cases:
            answer = case.call(base_url=girder_stack.api, session=session, headers=headers)
            seen.add((case.operation.label, answer.status_code))
            if answer.status_code >= 500:
                pytest.fail(f"{case.as_curl_command()}\n{answer.status_code} {answer.text}")

    assert len({label for label, _ in seen}) >= 19
    assert {status for _, status in seen} >= ({200, 400} if actor != "anonymous" else {401, 400})
    if actor != "scheduler":  # which may update any job that runs on Dask
        assert attack.state() == before
