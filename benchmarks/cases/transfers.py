"""Transfers of log lines, input files and output files, timed until all jobs have ended."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.measurement import Measurement
from benchmarks.side import Side

__all__ = ["files", "log_lines", "uploads"]

_RATE = "throughput"
#: The size of the file that all jobs read, and of the file that each job uploads.
INPUT_BYTES, OUTPUT_BYTES = 100 * 10**6, 20 * 10**6
# Seconds to wait after the end of the job for log lines that are missing.
_MAX_LOG_DELAY_S = 30.0


def log_lines(m: Measurement) -> dict[str, float | None]:
    """Measure a task that prints numbered lines, and check that Girder has each of them."""
    name = "log_lines_vs_girder_worker"
    for _ in m.rounds():
        for side in m.sides():
            start = time.perf_counter()
            side.start("each", task="lines", jobs=1, args=[m.size])
            side.wait(timeout=120 + m.size / 200)
            seconds = time.perf_counter() - start
            side.check(1)
            lost = _lost(side, m.size)
            if lost:
                seconds += _MAX_LOG_DELAY_S
            if lost and side.name == "girder_dask":
                m.fail(name, f"{lost:,} lines were lost")
            rate = (m.size - lost) / seconds
            m.record(side.name, _RATE, rate, "lines/s", seconds=seconds, lost=lost)
            side.clear()
    return {name: m.ratio(_RATE, "girder_dask", "girder_worker")}


def _lost(side: Side, count: int) -> int:
    """Return the number of lines that are missing in the log of the only job."""
    wanted = {f"line {n}" for n in range(count)}
    job = side.jobs.find_one({}, {"_id": 1})
    deadline = time.monotonic() + _MAX_LOG_DELAY_S
    while wanted and time.monotonic() < deadline:
        lines = side.log(job["_id"]).splitlines()
        assert len(lines) <= count, f"{side.name}: {len(lines)} lines of {count}"
        wanted.difference_update(lines)
    return len(wanted)


def files(m: Measurement) -> dict[str, float | None]:
    """Measure jobs that all read one file, a new one in each round."""
    for _ in m.rounds():
        data = os.urandom(INPUT_BYTES)
        for side in m.sides():
            file = _upload(side, data)
            seconds = side.timed("read_file", m.size, file=file["_id"])
            m.record(side.name, _RATE, m.size / seconds, "jobs/s", seconds=seconds)
            side.client.delete(f"item/{file['itemId']}")
            side.clear()
    return {"files_vs_girder_worker": m.ratio(_RATE, "girder_dask", "girder_worker")}


def _upload(side: Side, data: bytes) -> dict[str, Any]:
    folder = side.make_folder()
    stream = io.BytesIO(data)
    return dict(side.client.uploadStreamToFolder(folder["_id"], stream, "input.bin", len(data)))


def uploads(m: Measurement) -> dict[str, float | None]:
    """Measure jobs that each upload their own file."""
    for _ in m.rounds():
        for side in m.sides():
            folder = side.make_folder()
            with m.cpu_time(side.name, side.processes):
                seconds = side.timed(
                    "push_files", m.size, folder=folder["_id"], nbytes=OUTPUT_BYTES
                )
            found: Sequence[dict[str, Any]] = list(side.client.listItem(folder["_id"]))
            assert [item["size"] for item in found] == [OUTPUT_BYTES] * m.size, side.name
            m.record(side.name, _RATE, m.size / seconds, "jobs/s", seconds=seconds)
            for item in found:
                side.client.delete(f"item/{item['_id']}")
            side.clear()
    return {"upload_vs_girder_worker": m.ratio(_RATE, "girder_dask", "girder_worker")}
