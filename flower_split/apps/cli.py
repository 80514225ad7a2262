"""The command line `flower-split`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

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
        Path, typer.Argument(help="A run's output folder, its checkpoints, or one of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    best: Annotated[bool, typer.Option("--best", help="The round kept as the best.")] = False,
    server_round: Annotated[
        int | None, typer.Option("--round", help="This round; by default the last good one.")
    ] = None,
    merge: Annotated[
        str, typer.Option(metavar="MODEL", help="Write MODEL with the adapter merged into it.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
) -> None:
    """Write a run's adapter as a PEFT folder with a model card, or merged into the full model."""
    # Imported late: torch, transformers and peft take seconds, and `--help` needs none of them.
    from flower_split.apps.export import export

    try:
        found = export(
            checkpoint, out, best=best, server_round=server_round, merge=merge, force=force
        )
    except FlowerSplitError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    what = f"{merge} with the adapter" if merge else "the adapter"
    print(f"{what} of round {found.server_round} is in {out}")


if __name__ == "__main__":
    cli()
