"""`flower-split silo`: a silo's service, which keeps model and data between messages."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flower_split.apps.commands.check import AsJson, Debug
from flower_split.apps.commands.console import errors_once, print_json

if TYPE_CHECKING:
    from flower_split.proto.silo_pb2 import Status

silo_cli = typer.Typer(no_args_is_help=True, help="A silo's service between messages.")

Folder = Annotated[Path, typer.Argument(help="The service-dir of the SuperNode's node config.")]


@silo_cli.command("serve")
def serve_command(
    folder: Folder,
    models_gib: Annotated[
        float, typer.Option(min=0.0, help="GiB of models kept between messages, of several runs.")
    ] = 8.0,
    idle_minutes: Annotated[
        float,
        typer.Option(min=0.0, help="Minutes without a message, after which all is given back."),
    ] = 30.0,
    debug: Debug = False,
) -> None:
    """Keep imports, model and data for the messages of one SuperNode, until SIGTERM or Ctrl-C."""
    with errors_once(debug=debug):
        from flower_split.apps.silo_service.serving import serve

        serve(
            folder.absolute(),
            most_model_bytes=int(models_gib * 2**30),
            idle_seconds=idle_minutes * 60.0,
        )


@silo_cli.command("status")
def status_command(folder: Folder, as_json: AsJson = False, debug: Debug = False) -> None:
    """Print what the service holds and does; the status is 1 where none answers."""
    with errors_once(debug=debug, as_json=as_json):
        from flower_split.apps.silo_service.caller import ask_status

        found = ask_status(folder.absolute())
        if as_json:
            print_json({"ok": True, **_fields(found)})
            return
        for line in _lines(found):
            print(line)


def _fields(status: "Status") -> dict[str, Any]:
    return {
        "pid": status.pid,
        "seconds": status.seconds,
        "work": status.work,
        "done": status.done,
        "failed": status.failed,
        "resident-bytes": status.resident_bytes,
        "most-model-bytes": status.most_model_bytes,
        "idle-seconds": status.idle_seconds,
        "most-idle-seconds": status.most_idle_seconds,
        "models": [
            {
                "name": one.name,
                "device": one.device,
                "bottom-layers": one.bottom_layers,
                "top-layers": one.top_layers,
                "bytes": one.num_bytes,
            }
            for one in status.models
        ],
        "data": [
            {
                "run-id": str(one.run_id),
                "train-examples": one.train_examples,
                "held-out-examples": one.held_out_examples,
            }
            for one in status.data
        ],
    }


def _lines(status: "Status") -> list[str]:
    doing = f"works on {status.work}" if status.work else f"idle for {status.idle_seconds:.0f} s"
    held = sum(one.num_bytes for one in status.models)
    return [
        f"process {status.pid} serves for {status.seconds:.0f} s: {doing}",
        f"messages: {status.done} done, {status.failed} failed",
        f"memory: {_mib(status.resident_bytes)} of the machine's; models {_mib(held)} of "
        f"{_mib(status.most_model_bytes)}, given back after {status.most_idle_seconds:.0f} s "
        "without a message",
        *(
            f"model: {one.name}, {one.bottom_layers} bottom and {one.top_layers} top layers on "
            f"{one.device}, {_mib(one.num_bytes)}"
            for one in status.models
        ),
        *(
            f"data: run {one.run_id}, {one.train_examples} examples to train on, "
            f"{one.held_out_examples} held out"
            for one in status.data
        ),
    ]


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
