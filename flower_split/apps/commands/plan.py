"""`flower-split plan`: which cut fits a silo, what the wire costs, and what to take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flower_split.apps.commands.check import AsJson, Debug, Overrides
from flower_split.apps.commands.console import (
    NOT_DONE,
    console,
    errors_once,
    print_json,
    quiet_libraries,
)

if TYPE_CHECKING:
    from flower_split.apps.checking.planning import Plan
    from flower_split.apps.checking.sizes import CutSize


COLUMNS = ("cut", "parameters", "weights", "adapter", "kept", "head", "silo", "server")


def plan_command(
    model: Annotated[str, typer.Argument(help="A folder, package:folder or hub model.")],
    client_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What a silo has for a run, such as 8GB.")
    ] = "",
    bandwidth: Annotated[
        str, typer.Option(metavar="RATE", help="Between silo and server, each way.")
    ] = "100Mbit",
    run_config: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what each cut of MODEL costs a silo and what each codec costs the wire, and recommend.

    Batches, precision and adapter are the defaults, or what -c says: train.batch-size,
    train.max-length, model.dtype, model.quantization, lora.r. The status is 1 where no cut fits.
    """
    with errors_once(debug=debug, as_json=as_json, run_config=run_config):
        quiet_libraries()
        from flower_split.apps.checking.planning import make_plan, parse_bandwidth, parse_bytes
        from flower_split.apps.folder.overrides import parse_overrides
        from flower_split.config.run_config import read_run_config

        config = read_run_config({**parse_overrides(run_config or ()), "model.name": model})
        memory = parse_bytes(client_memory) if client_memory else 0
        plan = make_plan(config, client_memory=memory, bandwidth=parse_bandwidth(bandwidth))
        if as_json:
            print_json(_plain(plan, memory))
        else:
            train = config.train
            print(
                f"{model}: batches of {train.batch_size} x {plan.max_length} tokens, "
                f"{config.model.dtype}, r {config.lora.r}"
            )
            _print(plan, memory, bandwidth)
        if plan.cut is None:
            raise typer.Exit(NOT_DONE)


def _print(plan: "Plan", memory: int, bandwidth: str) -> None:
    from flower_split.apps.checking.advice import in_parameters
    from flower_split.reporting.figures import four_digits, in_bytes

    table = _table("What a silo holds, by layers at either end", COLUMNS)
    for size in plan.cuts:
        silo = size.silo
        fits = not memory or silo.bytes <= memory
        table.add_row(
            _cut(size),
            f"{in_parameters(silo.parameters)}, {size.share:.0%}",
            in_bytes(silo.weights_bytes),
            in_bytes(silo.adapter_bytes),
            in_bytes(silo.activation_bytes - size.head_bytes),
            in_bytes(size.head_bytes),
            in_bytes(silo.bytes) + ("" if fits else " !"),
            in_bytes(size.trunk.bytes),
        )
    wire = _table(f"A step on the wire, {bandwidth} each way", ("codec", "bytes", "seconds"))
    for codec in plan.codecs:
        wire.add_row(codec.name, in_bytes(codec.step_bytes), four_digits(codec.seconds))
    out = console()
    out.print(table)
    out.print(wire)
    if plan.cut is None:
        print(
            f"no cut fits {in_bytes(memory)}: take a smaller train.batch-size or train.max-length, "
            "model.dtype 'bfloat16', or model.quantization 'nf4'"
        )
        return
    layers, name = plan.cut.cuts.bottom_layers, plan.codec.name
    hops = " ".join(f'wire.{hop}="{name}"' for hop in ("h1", "h2", "g2", "g1"))
    print(
        f"recommended: split.bottom-layers={layers} split.top-layers={layers} {hops}\n"
        "A deeper cut neither protects the text nor saves bytes. The interpreter and its "
        "libraries, some 600 MB a process, come on top."
    )


def _table(title: str, columns: Sequence[str]) -> Table:
    """An empty table, narrow enough for a terminal of 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cut(size: "CutSize") -> str:
    return f"{size.cuts.bottom_layers}/{size.cuts.top_layers}"


def _plain(plan: "Plan", memory: int) -> dict[str, Any]:
    return {
        "ok": plan.cut is not None,
        "cuts": [
            {
                "bottom-layers": size.cuts.bottom_layers,
                "top-layers": size.cuts.top_layers,
                "silo-parameters": size.silo.parameters,
                "silo-bytes": size.silo.bytes,
                "weights-bytes": size.silo.weights_bytes,
                "adapter-bytes": size.silo.adapter_bytes,
                "activation-bytes": size.silo.activation_bytes - size.head_bytes,
                "head-bytes": size.head_bytes,
                "server-bytes": size.trunk.bytes,
                "fits": not memory or size.silo.bytes <= memory,
            }
            for size in plan.cuts
        ],
        "codecs": [
            {"name": one.name, "step-bytes": one.step_bytes, "seconds": one.seconds}
            for one in plan.codecs
        ],
        "recommended": {
            "split.bottom-layers": plan.cut.cuts.bottom_layers if plan.cut else None,
            "split.top-layers": plan.cut.cuts.top_layers if plan.cut else None,
            "wire": plan.codec.name,
        },
    }
