"""Settings that the environment of Girder overrides."""

from __future__ import annotations

from typing import Any

import pytest
from girder.exceptions import ValidationException
from girder.utility import setting_utilities

from girder_dask.plugin import settings


def save(key: str, value: Any) -> Any:
    """Validate a value as Girder does before it saves it, and return what it would save."""
    doc = {"key": key, "value": value}
    validate = setting_utilities.getValidator(key)
    assert validate is not None
    validate(doc)
    return doc["value"]


def test_validator_refuses_a_value_that_the_environment_overrides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GIRDER_SETTING_DASK_API_URL", "http://girder:8080/api/v1")
    with pytest.raises(ValidationException) as caught:
        save(settings.API_URL, "http://other:8080/api/v1")
    assert str(caught.value) == (
        "The setting dask.api_url is set in the environment of Girder "
        "(GIRDER_SETTING_DASK_API_URL), so a saved value would have no effect. Change the variable "
        "and restart Girder, or remove it."
    )


@pytest.mark.parametrize(
    ("key", "in_environment", "value", "saved"),
    [
        (
            settings.API_URL,
            "http://girder/api/v1/",
            "http://girder/api/v1/",
            "http://girder/api/v1",
        ),
        (settings.DIRECT_PATH, "true", True, True),
        (settings.MAX_PRIORITY, "7", "7", 7),
        (settings.ALLOW_TASKS, '["a:*"]', ["a:*"], ["a:*"]),
    ],
)
def test_validator_accepts_the_value_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, key: str, in_environment: str, value: Any, saved: Any
) -> None:
    """The page of the plugin saves all settings, changed or not."""
    variable = "GIRDER_SETTING_" + key.upper().replace(".", "_")
    monkeypatch.setenv(variable, in_environment)
    assert save(key, value) == saved


def test_validator_still_refuses_a_malformed_value_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIRDER_SETTING_DASK_DIRECT_PATH", "true")
    with pytest.raises(ValidationException, match="must be true or false"):
        save(settings.DIRECT_PATH, "perhaps")


def test_validator_accepts_any_value_without_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GIRDER_SETTING_DASK_API_URL", raising=False)
    assert save(settings.API_URL, "http://other/api/v1") == "http://other/api/v1"
