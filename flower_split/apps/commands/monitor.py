"""`flower-split monitor`: a run as it goes, or as it went, on a page in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import Debug
from flower_split.apps.commands.console import errors_once, usage

DEFAULT = "127.0.0.1:8765"


def monitor_command(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's output folder, which may not have begun; or host:port of a monitor "
            "elsewhere."
        ),
    ],
    address: Annotated[
        str, typer.Option(help="host:port to listen on; port 0 takes a free one.")
    ] = DEFAULT,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that readers need, made if missing. Other addresses than "
            "loopback need one always."
        ),
    ] = None,
    run_token_file: Annotated[
        Path | None, typer.Option(help="File with the token of the monitor elsewhere.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve a page that shows RUN live, until Ctrl-C. It only reads, and never changes a run."""
    with errors_once(debug=debug, interrupted="the run goes on"):
        from flower_split.apps.monitoring.serving import serve
        from flower_split.config.address import Address

        with usage():
            Address.parse(address, what="--address")
        serve(
            run,
            address,
            token_file=token_file,
            run_token_file=run_token_file,
            say=lambda text: print(text, flush=True),
        )
