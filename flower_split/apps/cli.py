"""The command line `flower-split`."""

import platform
from importlib import metadata
from typing import Annotated

import typer

from flower_split import __version__
from flower_split.apps.commands.audit import audit_command
from flower_split.apps.commands.chat import chat_command
from flower_split.apps.commands.check import check_command
from flower_split.apps.commands.deployment import (
    logs_command,
    resume_command,
    status_command,
    stop_command,
    submit_command,
)
from flower_split.apps.commands.export import export_command
from flower_split.apps.commands.keys import keys_cli
from flower_split.apps.commands.ledger import ledger_cli
from flower_split.apps.commands.local import deployment_cli
from flower_split.apps.commands.monitor import monitor_command
from flower_split.apps.commands.new import new_command
from flower_split.apps.commands.options import Commands
from flower_split.apps.commands.plan import plan_command
from flower_split.apps.commands.report import report_command
from flower_split.apps.commands.run import run_command
from flower_split.apps.commands.serve import serve_command
from flower_split.apps.commands.silo import silo_cli
from flower_split.apps.commands.trunk import trunk_cli
from flower_split.user_folders import give_flower_a_home

cli = typer.Typer(
    name="flower-split",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Split federated fine-tuning on Flower.",
)

CORE = ("flwr", "torch", "transformers", "peft", "grpcio", "numpy")
"""Distributions on whose versions results depend."""


def _print_versions(wanted: bool) -> None:
    if wanted:
        print(f"flower-split {__version__}")
        others = (f"{name} {metadata.version(name)}" for name in CORE)
        print(f"Python {platform.python_version()}, {', '.join(others)}")
        raise typer.Exit


@cli.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Show the version, and those of the packages it runs on.",
        ),
    ] = False,
) -> None:
    """Split federated fine-tuning on Flower."""
    give_flower_a_home()


cli.command("new")(new_command)
cli.add_typer(keys_cli, name="keys")
cli.add_typer(ledger_cli, name="ledger")
cli.add_typer(silo_cli, name="silo")
cli.add_typer(trunk_cli, name="trunk")
cli.command("check")(check_command)
cli.command("plan")(plan_command)
cli.command("audit")(audit_command)
cli.command("run")(run_command)
cli.command("submit")(submit_command)
cli.command("resume")(resume_command)
cli.command("status")(status_command)
cli.command("logs")(logs_command)
cli.command("stop")(stop_command)
cli.add_typer(deployment_cli, name="deployment")
cli.command("chat")(chat_command)
cli.command("serve")(serve_command)
cli.command("export")(export_command)
cli.command("monitor")(monitor_command)
cli.command("report")(report_command)


if __name__ == "__main__":
    cli()
