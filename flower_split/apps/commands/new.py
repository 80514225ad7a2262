"""`flower-split new`: an app with every key of a run, whose data stays where it is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import Debug
from flower_split.apps.commands.console import errors_once, quiet_libraries


def new_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")],
    model: Annotated[
        str, typer.Option(help="Its model; by default the quickstart's, for a trial.")
    ] = "",
    data: Annotated[
        str, typer.Option(help="Its data: a file, or module:function. Silos may name their own.")
    ] = "",
    publisher: Annotated[str, typer.Option(help="Publisher of the app.")] = "me",
    name: Annotated[str, typer.Option(help="Name of the app; by default the folder's.")] = "",
    debug: Debug = False,
) -> None:
    """Write a new app into DIR, with every key of a run; data put beside it stays where it is."""
    with errors_once(debug=debug):
        quiet_libraries()
        from flower_split.apps.folder.template import fields_of, new_app

        fields = fields_of(data)
        files = new_app(
            folder, model=model, data=data, publisher=publisher, name=name, fields=fields
        )
    for key, value in fields.items():
        print(f"{key} = {json.dumps(value)}, as its fields are named")
    print(f"{', '.join(files)} are in {folder}; next: flower-split check {folder}")
