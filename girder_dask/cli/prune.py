"""``girder-dask prune``: deletion of old jobs, or of their logs, artifacts or results."""

from __future__ import annotations

import os
from typing import Any

import click

__all__ = ["prune"]


@click.command()
@click.argument("what", type=click.Choice(["jobs", "logs", "artifacts", "results"]))
@click.option("--api-url", required=True, help="For example http://girder.example.org/api/v1.")
@click.option(
    "--login",
    help="An administrator's login, if GIRDER_API_KEY is not set. The password is asked for, or "
    "taken from GIRDER_PASSWORD.",
)
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    required=True,
    metavar="DAYS",
    help="Days since the last change of a job.",
)
@click.option(
    "--state",
    "states",
    type=click.Choice(["SUCCESS", "ERROR", "CANCELED"], case_sensitive=False),
    multiple=True,
    help="Only jobs in this final state.",
)
@click.option("--type", "types", multiple=True, help="Only jobs of this type.")
@click.option("--owner", "owners", multiple=True, metavar="LOGIN", help="Only jobs of this user.")
@click.option("--dry-run", is_flag=True, help="Only count.")
def prune(what: str, api_url: str, login: str | None, dry_run: bool, **rule: Any) -> None:
    """Delete old jobs, or only their logs, artifacts or results.

    Only jobs that have ended are affected. Girder deletes them in small steps, so that others do
    not have to wait; the command can be interrupted and repeated.
    """
    from girder_dask import credential

    api_key = os.environ.get("GIRDER_API_KEY")
    if bool(api_key) == bool(login):
        raise click.UsageError("Give either GIRDER_API_KEY in the environment or --login.")
    password = None
    if login:
        password = os.environ.get("GIRDER_PASSWORD") or click.prompt("Password", hide_input=True)
    client = credential.connect(api_url, api_key=api_key, login=login, password=password)
    chosen = {name: list(value) for name, value in rule.items() if name != "days" and value}
    body = {"rule": {"delete": what, "days": rule["days"], **chosen}, "dry_run": dry_run}
    deleted, after = 0, None
    while True:
        step = credential.ask(client, "dask/prune", {**body, "after": after})
        deleted, after = deleted + step["deleted"], step["after"]
        if after is None:
            break
    the = "" if what == "jobs" else f"the {what} of "
    verb = "would delete" if dry_run else "deleted"
    click.echo(f"Girder {verb} {the}{deleted} jobs.")
