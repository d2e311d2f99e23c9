"""Settings of tasks and their execution options."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from girder_dask.protocol import unpickling
from girder_dask.protocol.execution_options import OPTION_NAMES, ExecutionOptions
from girder_dask.protocol.messages import JobSpec, Submission
from girder_dask.tasks.options import TaskSettings

#: As commit a836c88 pickled it.
FORMER = (
    b"\x80\x04\x95q\x00\x00\x00\x00\x00\x00\x00\x8c\x11girder_dask.calls\x94\x8c\x0cTaskSettings"
    b"\x94\x93\x94)\x81\x94]\x94(\x8c\x05Count\x94\x8c\x04dask\x94\x89\x8c\x0cdask_handler\x94}\x94"
    b"\x88K\x02N}\x94\x8c\x03GPU\x94G?\xf0\x00\x00\x00\x00\x00\x00sK\x00\x8c\x06thread\x94\x89eb."
)
SETTINGS = TaskSettings(
    title="Count", bind=True, retries=2, resources={"GPU": 1.0}, isolation="thread"
)


def test_task_settings_open_pickles_of_the_first_release() -> None:
    assert unpickling.loads(FORMER) == SETTINGS
    assert pickle.loads(pickle.dumps(SETTINGS)) == SETTINGS


@pytest.mark.parametrize("holder", [TaskSettings, Submission, JobSpec])
def test_execution_options_are_those_of_tasks_submissions_and_specs(
    holder: type[ExecutionOptions],
) -> None:
    assert issubclass(holder, ExecutionOptions)
    assert holder.__struct_fields__[-len(OPTION_NAMES) :] == OPTION_NAMES


def test_checked_takes_numbers_of_any_kind() -> None:
    options = ExecutionOptions.checked(
        {"retries": np.int64(2), "timeout": np.float32(0.5), "resources": {"GPU": np.int8(1)}}
    )
    assert options == ExecutionOptions(retries=2, timeout=0.5, resources={"GPU": 1.0})
    assert [type(v) for v in (options.retries, options.timeout)] == [int, float]


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_checked_refuses_resources_without_a_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"printable name, got .* - at `\$\.resources`"):
        ExecutionOptions.checked({"resources": {name: 1}})


def test_checked_names_a_number_of_very_many_digits() -> None:
    with pytest.raises(ValueError, match="retries=…: Expected `int` <= 2147483647"):
        ExecutionOptions.checked({"retries": 10**5000})
