"""The command ``girder-dask``."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from girder_dask._version import __version__
from girder_dask.cli.certs import certs
from girder_dask.cli.local_worker import local_worker
from girder_dask.cli.prune import prune
from girder_dask.cli.site import init
from girder_dask.errors import GirderDaskError

__all__ = ["main"]

_INTERRUPTED_EXIT_CODE = 130


class _CommandGroup(click.Group):
    """Prints our errors without a traceback, and exits with code 130 after Ctrl-C."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as e:
            e.show()
            sys.exit(e.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            sys.exit(_INTERRUPTED_EXIT_CODE)
        except GirderDaskError as e:
            click.echo(f"Error: {e}", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="girder-dask")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries log.")
def main(verbose: bool) -> None:
    """Run the jobs of a Girder site on a Dask cluster."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


main.add_command(certs)
main.add_command(init)
main.add_command(local_worker)
main.add_command(prune)


@main.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where data, logs and secrets are kept. The next start uses them again.",
)
@click.option(
    "--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Worker processes."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Jobs that each worker runs at once.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address on which Girder, the scheduler and the dashboard listen.",
)
@click.option(
    "--girder-port", type=int, help="Girder's port. Default: that of the last start if it is free."
)
@click.option("--scheduler-port", type=int, help="The scheduler's port.")
@click.option("--dashboard-port", type=int, help="The port of the Dask dashboard.")
@click.option(
    "--tls",
    is_flag=True,
    help="Use TLS between Girder, the scheduler and the workers, with certificates made for this.",
)
def standalone(directory: Path, **options: Any) -> int:
    """Start Girder, a Dask scheduler and workers on this machine.

    The database and the message broker are started, too, unless GIRDER_MONGO_URI and
    GIRDER_NOTIFICATION_REDIS_URL name others. Ctrl-C stops everything; the data stays in the
    directory.
    """
    from girder_dask.standalone.launcher import run_standalone

    return run_standalone(directory, **options)


# The value of the option if it is given without one.
_PROMPT_FOR_KEY = "\0"


def _read_api_key(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Return the API key, and refuse one on the command line."""
    if value == _PROMPT_FOR_KEY:
        return str(click.prompt("API key", hide_input=True))
    if context.get_parameter_source(parameter.name or "") == ParameterSource.COMMANDLINE:
        raise click.UsageError(
            "Every user of this machine can read an API key on the command line in the list of "
            "processes. Set the environment variable GIRDER_API_KEY, or give --api-key without a "
            "value to be asked for it. If others use this machine, replace the key that you gave."
        )
    return value


@main.command()
@click.option("--api-url", required=True, help="For example http://girder.example.org/api/v1.")
@click.option(
    "--api-key",
    is_flag=False,
    flag_value=_PROMPT_FOR_KEY,
    callback=_read_api_key,
    envvar="GIRDER_API_KEY",
    show_envvar=True,
    metavar="",
    help="Ask for an administrator's API key, or take it from the environment variable.",
)
@click.option(
    "--login",
    help="An administrator's login. The password is asked for, or taken from GIRDER_PASSWORD.",
)
@click.option(
    "--name", help="The name of the new key.  [default: girder_dask scheduler, or metrics]"
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the key to this file, readable by its owner alone, instead of printing it.",
)
@click.option(
    "--revoke-others", is_flag=True, help="Delete your other keys of the same name and scope."
)
@click.option(
    "--metrics",
    "for_metrics",
    is_flag=True,
    help="Create the key with which Prometheus reads Girder's metrics, which may do nothing else.",
)
def credential(
    api_url: str,
    api_key: str | None,
    login: str | None,
    name: str | None,
    output: Path | None,
    revoke_others: bool,
    for_metrics: bool,
) -> None:
    """Create the scheduler's credential, or that of Prometheus.

    It is an API key that may update Dask jobs, or read metrics, and do nothing else. Only an
    administrator of Girder can create it, with an API key (GIRDER_API_KEY) or a login and its
    password (GIRDER_PASSWORD). The secrets cannot be given on the command line, since every user
    of the machine can read it in the list of processes.
    """
    import os

    from girder_dask import credential as credentials
    from girder_dask.protocol.names import METRICS_KEY_NAME, METRICS_SCOPE, SCHEDULER_SCOPE

    if bool(api_key) == bool(login):
        raise click.UsageError("Give either GIRDER_API_KEY (or --api-key) or --login.")
    password = None
    if login:
        password = os.environ.get("GIRDER_PASSWORD") or click.prompt("Password", hide_input=True)
    if output is not None:
        credentials.check_writable(output)
    client = credentials.connect(api_url, api_key=api_key, login=login, password=password)
    scope = METRICS_SCOPE if for_metrics else SCHEDULER_SCOPE
    name = name or (METRICS_KEY_NAME if for_metrics else credentials.NAME)
    key = credentials.create(client, name=name, scope=scope)
    if output is None:
        click.echo(key)
    else:
        credentials.write(output, key)
        use = (
            "Name it to Prometheus: credentials_file in its configuration"
            if for_metrics
            else "Name it to the scheduler: girder.credential-file in its Dask configuration, or "
            f"DASK_GIRDER__CREDENTIAL_FILE={output.absolute()}"
        )
        click.echo(f"Wrote {output}. {use}")
    if revoke_others:  # last, since a scheduler whose key is refused reads the file again
        credentials.revoke_others(client, key, name=name, scope=scope)


@main.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory of the stack. Default: a temporary one that is removed at the end.",
)
@click.option("--keep", is_flag=True, help="Leave the stack running until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def demo(directory: Path | None, keep: bool, as_json: bool) -> int:
    """Start a stack, and count the coins of a real image in a job."""
    from girder_dask.cli.demo import run_demo

    with _stopping_on_signals():
        return int(run_demo(directory, keep, as_json))


@main.command()
@click.option("--api-url", help="Girder's REST API. Default: girder.api-url of Dask's config.")
@click.option(
    "--scheduler", help="The scheduler's address. Default: scheduler-address of Dask's config."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def doctor(api_url: str | None, scheduler: str | None, as_json: bool) -> int:
    """Check each link between Girder, the scheduler and the workers."""
    from girder_dask.cli.doctor import run_doctor

    return int(run_doctor(api_url, scheduler, as_json))


@main.command()
def tasks() -> int:
    """List the tasks of the packages that are installed here."""
    from girder_dask.entrypoint import survey
    from girder_dask.protocol.error_text import summary
    from girder_dask.tasks.discovery import ENTRY_POINT_GROUP

    found, failed = survey()
    if not found and not failed:
        click.echo(
            f"No installed package names tasks in the entry point group {ENTRY_POINT_GROUP}."
        )
    for name in found:
        click.echo(name)
    for name, error in failed.items():
        click.echo(f"The tasks of {name} cannot be imported: {summary(error)}", err=True)
    return 1 if failed else 0


def _stopping_on_signals() -> contextlib.AbstractContextManager[Any]:
    from girder_dask.standalone.launcher import stopping_on_signals

    return stopping_on_signals()
