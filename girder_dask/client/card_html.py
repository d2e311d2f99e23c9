"""HTML card of a job, for notebooks.

The card inherits the page's colors, which suits light and dark themes. All text from a job is
escaped.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from typing import Any

from dask.utils import format_bytes, format_time

from girder_dask.jobs import FINAL, JobStatus, waits_for

__all__ = ["render", "tail"]

_MAX_LOG_LINES = 10
_MAX_LINE_CHARS = 240

_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_COLORS = {
    JobStatus.SUCCESS: "#2e8540",
    JobStatus.ERROR: "#c62f2f",
    JobStatus.CANCELED: "#6f7782",
    JobStatus.CANCELING: "#b3600b",
    JobStatus.QUEUED: "#6f7782",
    JobStatus.INACTIVE: "#6f7782",
}
_WORKING_COLOR = "#1a6fb5"

# Larger numbers, and those that are not finite, are not shown.
_MAX_NUMBER = 10**30

# The states whose progress counts bytes.
_BYTE_PROGRESS = {JobStatus.FETCHING_INPUT, JobStatus.PUSHING_OUTPUT}

_STYLE = """
.gd-card{box-sizing:border-box;max-width:46em;margin:2px 0;padding:10px 14px;line-height:1.45;
 border:1px solid rgba(128,128,128,.35);border-left:4px solid var(--gd);border-radius:4px;
 background:rgba(128,128,128,.06);color:inherit;font-size:13px;
 font-family:var(--jp-ui-font-family,system-ui,sans-serif)}
.gd-card *{box-sizing:border-box}
.gd-head{display:flex;align-items:baseline;gap:10px}
.gd-title{font-weight:600;flex:1;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.gd-state{background:var(--gd);color:#fff;border-radius:3px;padding:1px 8px;font-size:11px;
 font-weight:600;letter-spacing:.03em;white-space:nowrap}
.gd-facts{opacity:.75;font-size:12px;margin-top:2px;display:flex;gap:4px 14px;flex-wrap:wrap}
.gd-facts a{color:inherit;text-decoration:underline}
.gd-bar{height:6px;margin-top:8px;border-radius:3px;background:rgba(128,128,128,.25);
 overflow:hidden}
.gd-bar>div{height:100%;border-radius:3px;background:var(--gd)}
.gd-log{margin:8px 0 0;padding:6px 8px;border-radius:3px;background:rgba(128,128,128,.1);
 font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:12px;line-height:1.4;
 white-space:pre;overflow-x:auto;color:inherit}
.gd-note{margin-top:6px;font-size:12px;font-style:italic;opacity:.8}
"""


def render(
    job: Mapping[str, Any],
    *,
    url: str | None = None,
    note: str | None = None,
    now: datetime | None = None,
) -> str:
    """Return the card of a job.

    Parameters
    ----------
    job
        The job document, with its log.
    url
        The address of the job's page.
    note
        A sentence at the end of the card.
    now
        The current time, for a job that has not ended.
    """
    status = _status(job)
    color = _COLORS.get(status, _WORKING_COLOR)
    parts = [
        f"<style>{_STYLE}</style>",
        f'<div class="gd-card" style="--gd:{color}" data-job="{escape(str(job["_id"]))}">',
        f'<div class="gd-head"><span class="gd-title">{escape(str(job.get("title") or "Job"))}',
        f'</span><span class="gd-state">{escape(_name(status))}</span></div>',
        _facts(job, status, url, now or datetime.now(timezone.utc)),
        _bar(job),
        _log(job.get("log") or []),
        "" if note is None else f'<div class="gd-note">{escape(note)}</div>',
        "</div>",
    ]
    return "".join(parts)


def tail(log: Sequence[str] | str, lines: int = _MAX_LOG_LINES) -> list[str]:
    """Return the last lines of a log, as a terminal would show them.

    >>> tail(['one\\ntwo\\n', ' 10%\\r 90%\\x1b[0m\\n'], lines=2)
    ['two', ' 90%']
    """
    text = log if isinstance(log, str) else _end(log)
    text = _ANSI.sub("", text[-_MAX_LINE_CHARS * lines * 8 :])
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\n").split("\n")]
    return [
        line if len(line) <= _MAX_LINE_CHARS else line[:_MAX_LINE_CHARS] + "…"
        for line in shown[-lines:]
        if line
    ]


def _end(pieces: Sequence[str]) -> str:
    """Return the last pieces of a log, as many as the card needs."""
    found: list[str] = []
    size = 0
    for piece in reversed(pieces):
        found.append(piece)
        size += len(piece)
        if size > _MAX_LINE_CHARS * _MAX_LOG_LINES * 8:
            break
    return "".join(reversed(found))


def _status(job: Mapping[str, Any]) -> JobStatus:
    try:
        return JobStatus(job.get("status", JobStatus.QUEUED))
    except (ValueError, TypeError):
        return JobStatus.INACTIVE  # a state of another plugin


def _name(status: JobStatus) -> str:
    return status.name.replace("_", " ").lower()


def _facts(job: Mapping[str, Any], status: JobStatus, url: str | None, now: datetime) -> str:
    facts = [escape(fact) for fact in (_duration(job, status, now), _message(job)) if fact]
    shown = escape(str(job["_id"]))
    if url is not None and url.startswith(("http://", "https://")):
        facts.append(
            f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">job {shown}</a>'
        )
    else:
        facts.append(f"job {shown}")
    return '<div class="gd-facts">' + "".join(f"<span>{fact}</span>" for fact in facts) + "</div>"


def _duration(job: Mapping[str, Any], status: JobStatus, now: datetime) -> str:
    stamps = [
        (stamp.get("status"), _time(stamp.get("time"))) for stamp in job.get("timestamps", [])
    ]
    times = [(s, t) for s, t in stamps if t is not None]
    if not times:
        return ""
    waiting = {JobStatus.QUEUED, JobStatus.INACTIVE}
    end = times[-1][1] if status in FINAL else now
    if status in waiting:
        return f"waits for {_seconds(times[-1][1], end)}"
    # A job that is retried begins again after its last time in the queue.
    begun = times[0][1]
    for (before, _), (state, time) in itertools.pairwise(times):
        if before in waiting and state not in waiting:
            begun = time
    return f"{'took' if status in FINAL else 'runs for'} {_seconds(begun, end)}"


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _seconds(begin: datetime, end: datetime) -> str:
    return format_time(max((end - begin).total_seconds(), 0.0))


def _message(job: Mapping[str, Any]) -> str:
    group = (job.get("dask") or {}).get("group")
    if isinstance(group, Mapping):
        done, total, failed, canceled = (
            _number(group.get(name)) or 0 for name in ("done", "total", "failed", "canceled")
        )
        ended = f"{done:,.0f} of {total:,.0f} jobs done"
        return (
            ended
            + (f", {failed:,.0f} failed" if failed else "")
            + (f", {canceled:,.0f} canceled" if canceled else "")
        )
    why = waits_for(job)
    if why:
        return why[:_MAX_LINE_CHARS]
    progress = job.get("progress") or {}
    text = str(progress.get("message") or "")[:_MAX_LINE_CHARS]
    goal, current = _number(progress.get("total")), _number(progress.get("current"))
    if goal and current is not None:
        show = _bytes if job.get("status") in _BYTE_PROGRESS else _count
        text = f"{text} {show(current)}/{show(goal)}".strip()
    return text


def _bytes(number: float) -> str:
    return format_bytes(int(number))


def _count(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:,.2f}"


def _bar(job: Mapping[str, Any]) -> str:
    progress = job.get("progress") or {}
    total, current = _number(progress.get("total")), _number(progress.get("current"))
    if not total or current is None or total < 0:
        return ""
    percent = min(max(100 * current / total, 0.0), 100.0)
    label = f'role="progressbar" aria-valuenow="{percent:.0f}" aria-valuemin="0"'
    return (
        f'<div class="gd-bar" {label} aria-valuemax="100">'
        f'<div style="width:{percent:.1f}%"></div></div>'
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < _MAX_NUMBER else None


def _log(log: Sequence[str] | str) -> str:
    lines = tail(log)
    return f'<pre class="gd-log">{escape(chr(10).join(lines))}</pre>' if lines else ""
