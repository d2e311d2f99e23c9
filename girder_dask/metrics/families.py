"""Families of metrics as ``prometheus_client`` writes them, which is imported only when used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any

from girder_dask._version import __version__
from girder_dask.metrics.histogram import Histogram, cumulative
from girder_dask.tls import certificate_facts

__all__ = [
    "CONTENT_TYPE",
    "INSTALL_ADVICE",
    "counter",
    "gauge",
    "histogram",
    "is_available",
    "process_families",
    "render",
]

#: The type of the text format, in the version that every Prometheus reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: What to do where ``prometheus_client`` is missing.
INSTALL_ADVICE = "Run pip install 'girder_dask[metrics]' in its environment, and restart it."

# Values by the values of their labels, a tuple.
_Samples = Mapping[Any, float]


def is_available() -> bool:
    """Return True if ``prometheus_client`` can be imported."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        return False
    return True


def counter(name: str, help_text: str, samples: _Samples, labels: Sequence[str] = ()) -> Any:
    """Return a counter; ``name`` is without the suffix ``_total``."""
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, help_text, labels=labels), samples)


def gauge(name: str, help_text: str, samples: _Samples, labels: Sequence[str] = ()) -> Any:
    """Return a gauge."""
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, help_text, labels=labels), samples)


def _filled(family: Any, samples: _Samples) -> Any:
    for values, number in samples.items():
        family.add_metric(values, number)
    return family


def histogram(
    name: str,
    help_text: str,
    samples: Mapping[Any, Histogram],
    labels: Sequence[str] = (),
) -> Any:
    """Return a family of histograms by their labels."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, help_text, labels=labels)
    for values, each in samples.items():
        family.add_metric(values, cumulative(each.bounds, each.counts), each.sum)
    return family


def process_families(prefix: str) -> Iterator[Any]:
    """Yield what every process shows of itself: its version and its certificates."""
    version = {(__version__,): 1.0}
    yield gauge(f"{prefix}_info", "The version of girder_dask, as a label.", version, ["version"])
    facts = certificate_facts()
    expiries = {
        (PurePath(each["file"]).name,): datetime.fromisoformat(each["not_after"]).timestamp()
        for each in facts
        if each["error"] is None
    }
    yield gauge(
        f"{prefix}_certificate_expiry_timestamp_seconds",
        "When a certificate of the Dask configuration of this process expires.",
        expiries,
        ["file"],
    )
    unreadable = sum(each["error"] is not None for each in facts)
    yield gauge(
        f"{prefix}_unreadable_certificates",
        "Certificates of the Dask configuration of this process that cannot be read.",
        {(): float(unreadable)},
    )


def render(families: Iterable[Any]) -> bytes:
    """Return families in the text format of Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest

    collected = list(families)

    class Collector:
        """What has been collected already."""

        def collect(self) -> Iterable[Any]:
            return collected

        def describe(self) -> Iterable[Any]:
            return []

    registry = CollectorRegistry()
    registry.register(Collector())
    text: bytes = generate_latest(registry)
    return text
