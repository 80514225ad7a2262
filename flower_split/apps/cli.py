"""The command line `flower-split`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import check_command
from flower_split.apps.commands.deployment import (
    logs_command,
    status_command,
    stop_command,
    submit_command,
)
from flower_split.apps.commands.ledger import ledger_cli
from flower_split.apps.commands.monitor import monitor_command
from flower_split.apps.commands.new import new_command
from flower_split.apps.commands.plan import plan_command
from flower_split.apps.commands.report import report_command
from flower_split.apps.commands.run import run_command
from flower_split.errors import FlowerSplitError

cli = typer.Typer(
    name="flower-split",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Split federated fine-tuning on Flower.",
)


@cli.callback()
def main() -> None:
    """Split federated fine-tuning on Flower."""


@cli.command("export")
def export_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A run's output folder, its checkpoints, one of them, or an adapter."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    best: Annotated[bool, typer.Option("--best", help="The round kept as the best.")] = False,
    server_round: Annotated[
        int | None, typer.Option("--round", help="This round; by default the last one.")
    ] = None,
    merge: Annotated[
        str, typer.Option(metavar="MODEL", help="Write MODEL with the adapter merged into it.")
    ] = "",
    silo: Annotated[
        str, typer.Option(metavar="NAME", help="With this silo's personal tensors, found here.")
    ] = "",
    state_dir: Annotated[
        Path | None, typer.Option(help="The silo's state-dir, where its node config has one.")
    ] = None,
    run: Annotated[str, typer.Option(help="Of which run, where the silo has several.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
) -> None:
    """Write a run's adapter as a PEFT folder with a model card, or merged into the full model."""
    # Imported late: torch, transformers and peft take seconds, and `--help` needs none of them.
    from flower_split.apps.export import export

    try:
        what = export(
            checkpoint,
            out,
            best=best,
            server_round=server_round,
            merge=merge,
            silo=silo,
            state_dir=state_dir,
            run=run,
            force=force,
        )
    except FlowerSplitError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{what} is in {out}")


cli.command("new")(new_command)
cli.add_typer(ledger_cli, name="ledger")
cli.command("check")(check_command)
cli.command("plan")(plan_command)
cli.command("run")(run_command)
cli.command("submit")(submit_command)
cli.command("status")(status_command)
cli.command("logs")(logs_command)
cli.command("stop")(stop_command)
cli.command("monitor")(monitor_command)
cli.command("report")(report_command)


if __name__ == "__main__":
    cli()
