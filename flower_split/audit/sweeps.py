"""Sweeps: some attacks under other cuts and codecs than the run's own."""

from dataclasses import replace

from flower_split.audit.attacking import token_shares
from flower_split.audit.outcome import SweepPoint
from flower_split.audit.subject import CutModel
from flower_split.audit.under_way import UnderWay
from flower_split.config.wire import HOPS, WireConfig

CODECS = ("fp32", "int8", "nf4")
MOST_DEPTHS = 6


def sweep_depths(audit: UnderWay) -> None:
    """Nearest neighbour, inverter and labels over the cut."""
    last = audit.subject.layers - 1
    every = max(1, -(-last // (MOST_DEPTHS - 1)))
    for depth in sorted({*range(0, last + 1, every), last}):
        cuts = depth, min(depth, last - depth)
        audit.say(f"other cuts: {cuts[0]} layers before the trunk, {cuts[1]} behind it")
        with audit.subject.cut(*cuts) as model:
            _sweep(audit, model, audit.wire, "depth", str(depth), cuts)


def sweep_codecs(audit: UnderWay) -> None:
    """The same with coarser codecs on the wire."""
    with audit.subject.cut(*audit.cuts) as model:
        for codec in CODECS:
            audit.say(f"other codecs: {codec}")
            wire = replace(audit.wire, **dict.fromkeys(HOPS, codec))  # type: ignore[arg-type]
            _sweep(audit, model, wire, "codec", codec, audit.cuts)


def _sweep(
    audit: UnderWay,
    model: CutModel,
    wire: WireConfig,
    kind: str,
    setting: str,
    cuts: tuple[int, int],
) -> None:
    recording = audit.recorded(model, wire, f"{kind} {setting}")
    attacker = audit.attacker(model, wire, recording, quiet=True)
    attacker.nearest()
    attacker.inverters((audit.architecture,))
    attacker.labels(refine=False)
    audit.outcome.sweep.append(
        SweepPoint(
            kind=kind,
            setting=setting,
            bottom_layers=cuts[0],
            top_layers=cuts[1],
            shares=token_shares(attacker.results),
            converged=attacker.fitted[audit.architecture].converged,
        )
    )
