"""`flower-split serve`: an OpenAI-compatible endpoint of the tuned model."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import Debug, Overrides
from flower_split.apps.commands.console import errors_once, quiet_libraries
from flower_split.apps.commands.using import (
    Best,
    Device,
    MaxNewTokens,
    Model,
    OfRun,
    Plaintext,
    Run,
    ServerRound,
    Silo,
    StateDir,
    Temperature,
    Trunk,
    TrunkCa,
    opened_model,
    trunk_at,
)
from flower_split.config.address import Address, is_loopback
from flower_split.errors import ConfigError, UsageError


def serve_command(
    run: Run,
    host: Annotated[
        str, typer.Option(help="Where it listens; other than loopback needs --api-key-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that every request must bring.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="What requests call the model; by default the folder's name.")
    ] = "",
    waiting: Annotated[
        int, typer.Option(min=0, max=1000, help="Requests that may wait while one is answered.")
    ] = 8,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    model: Model = "",
    best: Best = False,
    server_round: ServerRound = None,
    silo: Silo = "",
    state_dir: StateDir = None,
    of_run: OfRun = "",
    trunk: Trunk = "",
    trunk_ca: TrunkCa = "",
    plaintext: Plaintext = False,
    device: Device = "auto",
    run_config: Overrides = None,
    debug: Debug = False,
) -> None:
    """Serve the model that RUN has tuned: /v1/models, /v1/chat/completions, /v1/completions.

    Chats are written in the run's own prompt format; completions go on with a text as it is. One
    request is answered at a time. --max-new-tokens bounds what a request may ask for; --temperature
    is that of requests that name none.
    """
    with errors_once(debug=debug, interrupted="the server has ended", run_config=run_config):
        if not (find_spec("starlette") and find_spec("uvicorn")):
            raise ConfigError(
                "serve needs starlette and uvicorn: pip install 'flower-split[serve]'"
            )
        if not is_loopback(host) and api_key_file is None:
            raise UsageError(
                f"--host {host} is reached from other machines: give --api-key-file, or leave "
                "--host out to listen on loopback"
            )
        trunk_at(trunk, ca=trunk_ca, plaintext=plaintext)  # before anything listens
        quiet_libraries()
        from flower_split.apps.serving.server import listening, read_key, server

        key = read_key(api_key_file) if api_key_file is not None else ""
        with (
            listening(host, port) as sock,
            opened_model(
                run,
                model=model,
                run_config=run_config,
                best=best,
                server_round=server_round,
                silo=silo,
                state_dir=state_dir,
                of_run=of_run,
                device=device,
                trunk=trunk,
                trunk_ca=trunk_ca,
                plaintext=plaintext,
            ) as (folder, tuned),
        ):
            from flower_split.apps.serving.endpoint import Endpoint
            from flower_split.apps.serving.requests import Bounds

            bounds = Bounds(
                model=name or folder, max_new_tokens=max_new_tokens, temperature=temperature
            )
            endpoint = Endpoint(tuned, bounds, api_key=key, waiting=waiting)
            at = Address(host, sock.getsockname()[1])
            print(f"{bounds.model}: {tuned.where}; written as {tuned.form.words}", file=sys.stderr)
            print(f"serving at http://{at}/v1; Ctrl-C ends it", flush=True)
            server(endpoint).run(sockets=[sock])
