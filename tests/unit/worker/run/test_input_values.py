"""Values of other jobs among the arguments of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask
import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import Dependency, Unpicklable, pack_value
from girder_dask.protocol.wire_json import to_json
from girder_dask.worker.run.runner import Run
from tests.support.local_girder import Peer, serving
from tests.support.run_worker import Worker

ONE, TWO = "5f3c00000000000000000001", "5f3c00000000000000000002"
RESULT = f"GET dask/job/{ONE}/result"


@pytest.fixture
def girder() -> Iterator[Peer]:
    with serving() as peer:
        yield peer


def answer(value: Any = None, *, status: int = 3, error: str | None = None) -> tuple[int, Any]:
    packed = None if value is None else pack_value(value)
    kept = {"status": status, "value": packed, "error": error, "exception": None}
    return 200, to_json(kept)


def outcome(worker: Worker, girder: Peer | None, *args: Any, **fields: Any) -> Any:
    """Run a function that returns its arguments."""
    values = fields.pop("values", None)
    if girder is not None:
        fields |= {"girder_api_url": girder.url, "token": "SECRET"}
    run = worker.run(lambda *a: a, *args, dependencies=[ONE], **fields)
    run = Run(run.spec, worker.context, values)
    future = worker.begin(run)
    error = future.exception(20)
    return error if error is not None else future.result()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_values_that_dask_brings_take_the_place_of_jobs(worker: Worker, isolation: str) -> None:
    args = [Dependency(ONE)], {"deep": (Dependency(TWO), 1)}, Dependency(ONE)
    values = {ONE: [1, 2], TWO: {3}}
    found = outcome(worker, None, *args, values=values, isolation=isolation)
    assert found == ([[1, 2]], {"deep": ({3}, 1)}, [1, 2])


def test_other_values_are_asked_of_girder_once_with_the_jobs_token(
    worker: Worker, girder: Peer
) -> None:
    girder.answers[RESULT] = answer({"coins": {1, 2}})
    found = outcome(
        worker, girder, Dependency(ONE), Dependency(ONE), Dependency(TWO), values={TWO: 7}
    )
    assert found == ({"coins": {1, 2}}, {"coins": {1, 2}}, 7)
    assert girder.asked == [RESULT]
    assert girder.headers[0]["Girder-Token"] == "SECRET"


class Absent:
    """A value of a package that is not installed here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import no_such_module",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (answer(Absent()), ["returned a value that cannot be opened here", "no_such_module"]),
        (answer(error="it takes 2,000,000 bytes"), ["returned a value, but it takes 2,000,000 b"]),
        (answer(), ["it is no longer kept", "Start that job again"]),
        (answer(status=4), ["is in state ERROR"]),
        ((403, {"message": "Read access denied"}), ["may not read", "Ask its owner"]),
        ((400, {"message": "Invalid job id"}), ["no longer exists"]),
        ((500, {"message": "Oh"}), ["Girder answered 500"]),
    ],
)
def test_a_value_that_is_not_to_be_had_is_an_error_in_a_sentence(
    worker: Worker, girder: Peer, given: Any, words: list[str]
) -> None:
    girder.answers[RESULT] = given
    girder.answers[f"GET job/{ONE}"] = 200, {"_id": ONE, "title": "Count coins"}
    outcome(worker, girder, Dependency(ONE))
    from tests.support.deadline import until

    until(lambda: worker.statuses()[-1:] == [JobStatus.ERROR])
    log = worker.log()
    assert ONE in log
    assert "Traceback" not in log
    assert "SECRET" not in log
    assert [word for word in words if word not in log] == []
    if given[0] == 200:
        assert "'Count coins'" in log


def test_without_a_girder_the_operator_is_asked(worker: Worker) -> None:
    assert "dask.api_url" in str(outcome(worker, None, Dependency(ONE)))


def test_a_girder_that_does_not_answer_is_named(worker: Worker, girder: Peer) -> None:
    nobody = {"girder_api_url": "http://127.0.0.1:9/api/v1", "token": "T"}
    with dask.config.set({"girder.worker.retry-time": "1 s"}):
        error = outcome(worker, None, Dependency(ONE), **nobody)
    assert "Girder did not answer" in str(error)


def test_a_value_that_could_not_leave_its_process_is_an_error(worker: Worker) -> None:
    values = {ONE: Unpicklable("it cannot be pickled")}
    assert "it cannot be pickled" in str(outcome(worker, None, Dependency(ONE), values=values))
