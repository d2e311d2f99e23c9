"""Sums of the counts of all processes, in the collection ``dask_metric``.

A document is one counter or one histogram: its id is the name of the metric and its labels, and its
fields are numbers that are only ever increased. A process that is killed loses what it has counted
since its last flush; a restart loses nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from girder.models.model_base import Model
from pymongo import ReadPreference, UpdateOne

from girder_dask.metrics.histogram import Histogram
from girder_dask.plugin.metrics.counts import BOUNDS_S, Counts

__all__ = ["DaskMetric", "add", "collection", "load", "load_gauges", "store_gauges"]

#: How long the gauges of a process count after it has last stored them.
PROCESS_TTL = timedelta(seconds=90)

# Ids begin with the kind of the document.
_COUNTER, _EVENT, _HISTOGRAM, _PROCESS = "counter", "event", "histogram", "process"
# The most documents that a scrape reads: those of a hundred tasks are about a thousand.
_MAX_DOCUMENTS = 5_000
_EXPIRY_S = 3600


class DaskMetric(Model):
    """A counter, a histogram, the gauges of a process, or the last count of all jobs."""

    def initialize(self) -> None:
        """Name the collection, and let documents of processes that have ended expire."""
        self.name = "dask_metric"
        self.ensureIndex(([("updated", 1)], {"expireAfterSeconds": _EXPIRY_S}))

    def validate(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Accept the document: only this package writes such documents."""
        return doc


def collection() -> Any:
    """Return the collection, read from the primary."""
    return DaskMetric().collection.with_options(read_preference=ReadPreference.PRIMARY)


def add(counts: Counts, label: Callable[[str], str]) -> None:
    """Add counts to the sums, in one request.

    Parameters
    ----------
    counts
        Counts with names of tasks.
    label
        Returns the label of a task.
    """
    labelled = Counts(events=counts.events)
    for (name, task, *more), number in counts.counters.items():
        labelled.counters[(name, label(task), *more)] += number
    for (name, task), histogram in counts.histograms.items():
        labelled.add(Counts(histograms={(name, label(task)): histogram}))
    writes = [
        UpdateOne({"_id": _id(_COUNTER, *key)}, {"$inc": {"value": number}}, upsert=True)
        for key, number in labelled.counters.items()
    ]
    writes += [
        UpdateOne({"_id": _id(_EVENT, name)}, {"$inc": {"value": number}}, upsert=True)
        for name, number in labelled.events.items()
    ]
    for key, each in labelled.histograms.items():
        change: dict[str, float] = {f"b{n}": count for n, count in enumerate(each.counts) if count}
        change["sum"] = each.sum
        writes.append(UpdateOne({"_id": _id(_HISTOGRAM, *key)}, {"$inc": change}, upsert=True))
    if writes:
        DaskMetric().collection.bulk_write(writes, ordered=False)


def load() -> Counts:
    """Return the sums of all processes, with labels for names of tasks."""
    sums = Counts()
    for kind in (_COUNTER, _EVENT, _HISTOGRAM):
        found = collection().find({"_id": {"$gte": f'["{kind}"', "$lt": f'["{kind}#'}})
        for document in found.limit(_MAX_DOCUMENTS):
            _, *key = json.loads(document["_id"])
            if kind == _COUNTER:
                sums.counters[tuple(key)] = document["value"]
            elif kind == _EVENT:
                sums.events[key[0]] = document["value"]
            elif key[0] in BOUNDS_S:
                sums.histograms[tuple(key)] = _histogram(BOUNDS_S[key[0]], document)
    return sums


def _histogram(bounds: tuple[float, ...], document: Mapping[str, Any]) -> Histogram:
    histogram = Histogram(bounds)
    histogram.counts = [int(document.get(f"b{n}", 0)) for n in range(len(histogram.counts))]
    histogram.sum = float(document.get("sum", 0.0))
    return histogram


def store_gauges(process: str, gauges: Mapping[str, float], now: datetime) -> None:
    """Store the gauges of this process."""
    document = {"gauges": dict(gauges), "updated": now}
    DaskMetric().collection.replace_one({"_id": _id(_PROCESS, process)}, document, upsert=True)


def load_gauges(now: datetime) -> tuple[int, Counter[str]]:
    """Return the number of processes that have stored gauges lately, and their sums by name."""
    found = list(collection().find({"updated": {"$gt": now - PROCESS_TTL}}, limit=_MAX_DOCUMENTS))
    sums = Counter[str]()
    for document in found:
        sums.update(document["gauges"])
    return len(found), sums


def _id(*parts: str) -> str:
    return json.dumps(parts, separators=(",", ":"))
