"""Families of metrics in the text format, whatever their labels are."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from girder_dask.metrics import families
from girder_dask.metrics.histogram import Histogram

HOSTILE = ['a"b', "a\nb", "a\\", '"} 1\nother{x="', "a\r\nb", "\u2028", ""]


def samples(text: bytes) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    ]


@pytest.mark.parametrize("label", HOSTILE)
def test_family_keeps_a_hostile_label_in_its_quotes(label: str) -> None:
    text = families.render([families.gauge("jobs", "Jobs.", {(label,): 1}, ["task"])])
    assert samples(text) == [("jobs", {"task": label}, 1.0)]
    assert text.count(b"\n") == 3


@given(st.text(st.characters(codec="utf-8")))
def test_family_keeps_any_label(label: str) -> None:
    text = families.render([families.counter("jobs", "Jobs.", {(label,): 2}, ["task"])])
    assert samples(text) == [("jobs_total", {"task": label}, 2.0)]


def test_histogram_has_cumulative_buckets() -> None:
    histogram = Histogram((1.0, 10.0))
    for seconds in (0.5, 1.0, 5.0, 100.0, -3.0):
        histogram.observe(seconds)
    family = families.histogram("run_seconds", "Time.", {("f",): histogram}, ["task"])
    found = {
        (name, labels.get("le")): value
        for name, labels, value in samples(families.render([family]))
    }
    assert found == {
        ("run_seconds_bucket", "1.0"): 3,
        ("run_seconds_bucket", "10.0"): 4,
        ("run_seconds_bucket", "+Inf"): 5,
        ("run_seconds_count", None): 5,
        ("run_seconds_sum", None): 106.5,
    }


def test_prometheus_client_is_imported_only_when_it_is_used() -> None:
    code = """
import json, sys
import girder_dask.metrics.families, girder_dask.scheduler.metrics.collector
before = "prometheus_client" in sys.modules
sys.modules["prometheus_client"] = None
from girder_dask.scheduler.metrics.collector import install
install(None)
print(json.dumps([before, girder_dask.metrics.families.is_available()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False]
