"""`flower-split ledger`: what left a silo, and whether the account of it is whole."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import AsJson, Debug
from flower_split.apps.commands.console import errors_once, print_json
from flower_split.errors import LedgerError

ledger_cli = typer.Typer(no_args_is_help=True, help="What left a silo, by its own account.")

Folder = Annotated[Path, typer.Argument(help="A silo's folder in its ledger-dir, or ledger-dir.")]


@ledger_cli.command("show")
def show_command(
    folder: Folder,
    kind: Annotated[str, typer.Option(help="Only entries of this kind.")] = "",
    debug: Debug = False,
) -> None:
    """Print the entries, one JSON object a line."""
    with errors_once(debug=debug):
        from flower_split.ledger import read_entries

        for entry in read_entries(_silos(folder)):
            if not kind or entry.fields.get("kind") == kind:
                print(json.dumps({"n": entry.n, "time": entry.time, **entry.fields}))


@ledger_cli.command("verify")
def verify_command(folder: Folder, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check that no entry was changed, cut out or put elsewhere; the status is 1 where one was."""
    with errors_once(debug=debug, as_json=as_json):
        from flower_split.ledger import verify

        found = verify(_silos(folder))
        if as_json:
            print_json({"ok": True, "entries": found.entries, "kinds": found.kinds})
            return
        kinds = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(found.kinds.items()))
        print(f"whole: {found.entries} entries from {found.first} on, {kinds}")
        print(f"the last one's hash is {found.hash}")


def _silos(folder: Path) -> Path:
    """`folder`, or the only ledger in it."""
    from flower_split.ledger.book import ledger_files

    if not folder.is_dir():
        raise LedgerError(f"there is no folder {folder}")
    if ledger_files(folder):
        return folder
    held = [one for one in sorted(folder.iterdir()) if one.is_dir() and ledger_files(one)]
    if len(held) > 1:
        names = ", ".join(one.name for one in held)
        raise LedgerError(f"{folder} has the ledgers of several silos: name one of {names}")
    return held[0] if held else folder
