"""The facts that ``girder-dask doctor`` gathers from all processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from girder_dask import config
from girder_dask.diagnostics import GirderAnswer, ask_girder, describe_process, find_api
from girder_dask.utils.error_log import describe

__all__ = ["Facts", "gather_facts"]

_CONNECT_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 20.0
_DAY_S = 86400.0
# What the errors of a connection say that the other side has closed.
_CLOSED = ("closed", "reset by peer")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of all processes.

    Attributes
    ----------
    here
        Those of this process.
    scheduler_address, scheduler_error
        Where the scheduler was asked, and why it could not be.
    listens_on
        The address that the scheduler gives to others.
    scheduler
        The answer of our hooks, or None without hooks.
    workers
        The facts of each worker by its address, None for a worker without our plugin.
    worker_errors
        The errors of workers that could not gather their facts.
    girder_url, girder_answer
        Where Girder was asked from here, and its answer.
    https_days_left
        The days until the certificate of its https expires, None for http and if it is refused.
    asked, answered
        When the scheduler was asked and had answered, in seconds since the epoch by the clock here.
    """

    here: Mapping[str, Any]
    scheduler_address: str | None = None
    scheduler_error: str | None = None
    listens_on: str | None = None
    scheduler: Mapping[str, Any] | None = None
    workers: Mapping[str, Mapping[str, Any] | None] | None = None
    worker_errors: Mapping[str, str] = field(default_factory=dict)
    girder_url: str | None = None
    girder_answer: GirderAnswer = field(default_factory=GirderAnswer)
    https_days_left: float | None = None
    asked: float = 0.0
    answered: float = 0.0

    @property
    def girder(self) -> Mapping[str, Any] | None:
        """The facts that Girder gave the scheduler, or None."""
        return None if self.scheduler is None else self.scheduler.get("girder")


async def gather_facts(api_url: str | None, scheduler: str | None) -> Facts:
    """Gather the facts of all processes that can be reached."""
    import dask.config

    address = scheduler or dask.config.get("scheduler-address", None)
    asked = time.time()
    answers, error = None, "its address is not known here"
    if address:
        answers, error = await _ask_or_explain(address)
    answered = time.time()
    listens_on, status, workers, worker_errors = answers or (None, None, None, {})
    url, answer, days_left = await asyncio.to_thread(
        _ask_girder, api_url or config.get("api-url") or (status or {}).get("api_url")
    )
    return Facts(
        here=await asyncio.to_thread(describe_process, None),
        scheduler_address=address,
        scheduler_error=error or None,
        listens_on=listens_on,
        scheduler=status,
        workers=workers,
        worker_errors=worker_errors,
        girder_url=url,
        girder_answer=answer,
        https_days_left=days_left,
        asked=asked,
        answered=answered,
    )


def _ask_girder(url: str | None) -> tuple[str | None, GirderAnswer, float | None]:
    """Return the REST API of Girder, its answer, and the days that its certificate has left."""
    from girder_dask.http.authorities import https_expiry

    if url is None:
        return None, GirderAnswer("its address is not known here"), None
    api = find_api(url, timeout_s=_ANSWER_TIMEOUT_S)
    answer = ask_girder(api, needs_plugin=False, timeout_s=_ANSWER_TIMEOUT_S)
    expires = https_expiry(api, timeout_s=_ANSWER_TIMEOUT_S)
    return api, answer, None if expires is None else (expires - time.time()) / _DAY_S


_Answers = tuple[str, Mapping[str, Any] | None, Mapping[str, Any], Mapping[str, str]]


async def _ask_or_explain(address: str) -> tuple[_Answers | None, str]:
    """Return the answers of the scheduler and the workers, or why there are none."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            return await _ask(address), ""
    except TimeoutError:
        return None, f"it does not answer within {_ANSWER_TIMEOUT_S:.0f} s"
    except Exception as e:  # noqa: BLE001 - whatever address and certificates are given
        return None, _explanation(address, e)


def _explanation(address: str, error: Exception) -> str:
    import ssl

    from girder_dask.http.request_errors import error_cause

    text = error_cause(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused ({cause.verify_message.rstrip('.')})"
        cause = cause.__cause__ or cause.__context__
    if "ssl_context" in text:
        return "it uses TLS, and Dask's configuration here names no certificate"
    if address.startswith("tcp://") and any(how in text.lower() for how in _CLOSED):
        return "it closes the connection; if it uses TLS, its address begins with tls://"
    return text


async def _ask(address: str) -> _Answers:
    from distributed import rpc
    from distributed.security import Security

    security = Security().get_connection_args("client")
    remote = rpc(address, timeout=_CONNECT_TIMEOUT_S, connection_args=security)
    try:
        identity = await remote.identity()
        status = await remote.girder_status()
        status = status if isinstance(status, dict) and "versions" in status else None
        told = (status or {}).get("girder") or {}
        message = {"op": "girder_facts", "api_url": told.get("worker_api_url")}
        answers = await remote.broadcast(msg=message, on_error="return")
    finally:
        remote.close_comms()
    workers = {
        worker: answers[worker] if isinstance(answers.get(worker), dict) else None
        for worker in identity["workers"]
    }
    errors = {
        worker: describe(answer)
        for worker, answer in answers.items()
        if isinstance(answer, Exception)
    }
    return str(identity["address"]), status, workers, errors
