"""One run of ``girder-dask doctor``."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from girder_dask.cli.doctor.checks import Check
from girder_dask.cli.doctor.examination import examine
from girder_dask.cli.doctor.facts import gather_facts

__all__ = ["run_doctor"]


def run_doctor(api_url: str | None, scheduler: str | None, as_json: bool = False) -> int:
    """Check all links, print the checks, and return the exit code.

    Parameters
    ----------
    api_url
        The address of Girder or of its REST API as this process reaches it, by default that of the
        scheduler.
    scheduler
        The address of the Dask scheduler, by default that of Dask's configuration.
    as_json
        Print one JSON document instead of lines.

    Returns
    -------
    int
        0 if all links work, else 1.
    """
    checks = list(examine(asyncio.run(gather_facts(api_url, scheduler))))
    if as_json:
        print(json.dumps([{"ok": check.ok, **asdict(check)} for check in checks], indent=2))
    else:
        for check in checks:
            print(_line(check))
        wrong = sum(not check.ok for check in checks)
        print(f"\n{wrong} of {len(checks)} checks failed." if wrong else "\nAll is well.")
    return 0 if all(check.ok for check in checks) else 1


def _line(check: Check) -> str:
    if check.ok:
        return f"ok      {check.name}{': ' + check.detail if check.detail else ''}"
    remedy = f"\n        → {check.remedy}" if check.remedy else ""
    return f"FAILED  {check.failure}: {check.problem}{remedy}"
