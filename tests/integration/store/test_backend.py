"""The backend inside Girder, and the settings that it reads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import StoredResult, Submission


def test_settings_are_checked_and_take_effect(girder, monkeypatch):
    from girder.exceptions import ValidationException
    from girder.models.setting import Setting

    from girder_dask.plugin import settings as ours

    monkeypatch.delenv("GIRDER_SETTING_DASK_SCHEDULER_ADDRESS")
    ours.clear_cache()
    assert ours.scheduler_addresses() == []
    Setting().set(ours.SCHEDULER_ADDRESS, " tcp://10.0.0.1:8786 ")
    assert ours.scheduler_addresses() == ["tcp://10.0.0.1:8786"]
    Setting().set(ours.SCHEDULER_ADDRESS, "tls://a:8786,tls://b:8786 , ")
    assert ours.scheduler_addresses() == ["tls://a:8786", "tls://b:8786"]
    Setting().set(ours.API_URL, "https://girder.test/api/v1/")
    assert ours.api_url() == "https://girder.test/api/v1"
    Setting().unset(ours.API_URL)
    assert ours.api_url() is None
    for key, value in [
        (ours.SCHEDULER_ADDRESS, "10.0.0.1:8786"),
        (ours.SCHEDULER_ADDRESS, "tcp://"),
        (ours.SCHEDULER_ADDRESS, "tcp://a:8786, b:8786"),
        (ours.SCHEDULER_ADDRESS, 5),
        (ours.API_URL, "girder.test"),
        (ours.DIRECT_PATH, "yes"),
    ]:
        with pytest.raises(ValidationException):
            Setting().set(key, value)
    Setting().unset(ours.SCHEDULER_ADDRESS)


def test_backend_records_and_reads(girder, monkeypatch):
    from girder_dask.client.backend import get_backend
    from girder_dask.plugin.scheduler_rpc import SchedulerRpc

    backend = get_backend()
    gate, over = threading.Event(), []

    async def hang(_rpc, _address, operation, _arguments):
        try:
            await asyncio.to_thread(gate.wait, 60)
            raise OSError("there is no scheduler")
        finally:
            over.append(operation)

    with monkeypatch.context() as patch:
        patch.setattr(SchedulerRpc, "call", hang)
        (job,) = backend.submit([Submission("pkg.mod:work", b"x", user=girder.user)])
        assert over == [], "it has not waited for a scheduler"
        gate.set()
    job_id = str(job["_id"])
    assert backend.load_job(job_id)["status"] == JobStatus.QUEUED
    assert "log" not in backend.load_job(job_id)
    assert backend.load_job(job_id, log=True)["log"] == []
    backend.cancel(job_id)
    assert backend.load_job(job_id)["status"] == JobStatus.CANCELED
    assert backend.load_result(job_id) == StoredResult(status=JobStatus.CANCELED)
    for wrong in ("5f3c00000000000000000000", "nonsense"):
        with pytest.raises(GirderError):
            backend.load_job(wrong)
