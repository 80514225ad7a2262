"""Options of the commands that use what a run has left, and the model that they open by them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flower_split.apps.commands.console import quiet_libraries, usage
from flower_split.config.address import Address
from flower_split.errors import UsageError

if TYPE_CHECKING:
    from flower_split.apps.using.tuned_model import TunedModel

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Output folder of a run, or a PEFT folder.")
]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL", help="The uncut model, where it lies elsewhere than it did in the run."
    ),
]
Best = Annotated[bool, typer.Option("--best", help="The round kept as the best.")]
ServerRound = Annotated[
    int | None, typer.Option("--round", help="This round; by default the last one.")
]
Silo = Annotated[
    str, typer.Option(metavar="NAME", help="With this silo's personal tensors, found here.")
]
StateDir = Annotated[
    Path | None, typer.Option(help="The silo's state-dir, where its node config has one.")
]
OfRun = Annotated[str, typer.Option("--run", help="Of which run, where the silo has several.")]
Device = Annotated[str, typer.Option(help="Where this process computes: auto, cpu, cuda, mps.")]
Trunk = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="A trunk that has loaded the same adapter; by default it is in this process.",
    ),
]
TrunkCa = Annotated[str, typer.Option(metavar="FILE", help="CA of the trunk's certificate, PEM.")]
Plaintext = Annotated[
    bool, typer.Option("--trunk-plaintext", help="The trunk is on loopback, without TLS.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")]
Temperature = Annotated[
    float, typer.Option(min=0.0, max=2.0, help="0 takes the most likely token each time.")
]


def trunk_at(trunk: str, *, ca: str, plaintext: bool) -> Address | None:
    """Where `--trunk` says that a trunk is; None where it says nothing.

    Raises:
        UsageError: it is no address, or the options for its connection contradict it.
    """
    with usage():
        address = Address.parse(trunk, what="--trunk") if trunk else None
    if address is None and (ca or plaintext):
        raise UsageError("--trunk-ca and --trunk-plaintext are of a trunk that --trunk names")
    if plaintext and ca:
        raise UsageError("--trunk-ca is of TLS, which --trunk-plaintext does without")
    if plaintext and address is not None and not address.is_loopback:
        raise UsageError(f"--trunk-plaintext is for loopback only, and {address} is not")
    return address


@contextmanager
def opened_model(
    run: Path,
    *,
    model: str,
    run_config: list[str] | None,
    best: bool,
    server_round: int | None,
    silo: str,
    state_dir: Path | None,
    of_run: str,
    device: str,
    trunk: str,
    trunk_ca: str,
    plaintext: bool,
) -> "Iterator[tuple[str, TunedModel]]":
    """The model that the options name, and what it is called, as long as the block lasts."""
    address = trunk_at(trunk, ca=trunk_ca, plaintext=plaintext)
    quiet_libraries()
    from flower_split.apps.folder.overrides import parse_overrides
    from flower_split.apps.using.tuned_model import TrunkHost, open_tuned
    from flower_split.apps.using.tuned_run import Choice, tuned_run
    from flower_split.tls import ClientTls

    host = None
    if address is not None:
        host = TrunkHost(
            address=address, tls=None if plaintext else ClientTls.from_files(ca=trunk_ca)
        )
    overrides = parse_overrides(run_config or ())
    choice = Choice(
        best=best, server_round=server_round, silo=silo, state_dir=state_dir, of_run=of_run
    )
    given = {**overrides, **({"model.name": model} if model else {})}
    with (
        tuned_run(run, choice=choice, overrides=given) as found,
        open_tuned(found, device=device, trunk=host) as opened,
    ):
        yield found.name, opened
