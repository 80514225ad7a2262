"""`flower-split export`: a run's adapter as a PEFT folder, or merged into the full model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import AsJson, Debug
from flower_split.apps.commands.console import errors_once, print_json, quiet_libraries
from flower_split.apps.commands.using import Best, OfRun, ServerRound, Silo, StateDir


def export_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run's output folder, its checkpoints, one of them, or a PEFT folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    best: Best = False,
    server_round: ServerRound = None,
    merge: Annotated[
        str, typer.Option(metavar="MODEL", help="Write MODEL with the adapter merged into it.")
    ] = "",
    silo: Silo = "",
    state_dir: StateDir = None,
    of_run: OfRun = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's adapter as a PEFT folder with a model card, or merged into the full model."""
    with errors_once(debug=debug, as_json=as_json, interrupted="nothing was written"):
        quiet_libraries()
        from transformers.utils import logging as transformers_output

        from flower_split.apps.export import export

        if not sys.stderr.isatty():
            transformers_output.disable_progress_bar()
        what = export(
            run,
            out,
            best=best,
            server_round=server_round,
            merge=merge,
            silo=silo,
            state_dir=state_dir,
            run=of_run,
            force=force,
        )
        if as_json:
            print_json({"ok": True, "what": what, "folder": str(out.resolve())})
        else:
            print(f"{what} is in {out}")
