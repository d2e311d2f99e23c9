"""What a task raised, raised again elsewhere."""

from __future__ import annotations

import pytest

from girder_dask.errors import JobFailed
from girder_dask.protocol.exceptions import failure, pack_exception


@pytest.mark.parametrize("unpickle", [True, False])
@pytest.mark.parametrize(
    "error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), StopIteration(3)]
)
def test_what_would_end_the_program_that_asks_is_no_more_than_a_failure(
    error: BaseException, unpickle: bool
) -> None:
    failed = failure("5f3c", "it ended", pack_exception(error, "Traceback"), unpickle=unpickle)
    assert type(failed) is JobFailed
    assert "5f3c" in str(failed)
    assert "Traceback" in str(failed.__cause__)


@pytest.mark.parametrize("error", [KeyError("coins"), OSError(2, "No such file", "a.txt")])
def test_an_error_is_of_the_class_that_was_raised(error: Exception) -> None:
    failed = failure("5f3c", None, pack_exception(error, "Traceback"), unpickle=False)
    assert isinstance(failed, type(error))
    assert isinstance(failed, JobFailed)
    assert failed.args == error.args
