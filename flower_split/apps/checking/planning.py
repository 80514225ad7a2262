"""A plan for a model: what each cut costs a silo, what each codec costs the wire, what to take.

A deeper cut protects no text and saves no bytes (docs/security.md): it moves layers from the server
to the silos. So the shallowest is taken that keeps layers at both ends, as far as memory allows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flower_split.adapters import resolve_plan
from flower_split.apps.checking.sizes import CutSize, cut_size, microbatch_bytes, step_bytes
from flower_split.config.sections import SplitConfig
from flower_split.config.wire import CODECS
from flower_split.errors import UsageError
from flower_split.segments import Cuts, load_skeleton, tables_of

DEPTHS = (0, 1, 2, 4, 8, 12, 16)
"""Layers at either end of the cuts that are looked at."""
WANTED = 2
"""Layers at either end beyond which a silo gains nothing."""
PREFERRED = ("fp32", "bf16", "int8")
"""Codecs in the order in which they are taken: `nf4` changes gradients of real models too much."""
SECONDS = 1.0
"""On the wire a step, that are no matter."""

_BYTES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_BITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, kw_only=True)
class CodecCost:
    """What a codec for all four tensors costs."""

    name: str
    step_bytes: int
    """Of one optimizer step, both ways."""
    seconds: float
    """On the wire a step, half of it each way at once; nothing is computed meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to choose from, and what is recommended."""

    max_length: int
    """Tokens of the sequences that it is made for: those of the run, or as many as the model has
    room for."""
    cuts: Sequence[CutSize]
    codecs: Sequence[CodecCost]
    cut: CutSize | None
    """The recommended one; None where no cut fits."""
    codec: CodecCost
    """The recommended one."""


def make_plan(config: SplitConfig, *, client_memory: int, bandwidth: float) -> Plan:
    """The plan for the model and the batches of `config`.

    Args:
        config: Its cuts and codecs are not looked at.
        client_memory: Bytes that a silo has for the run; 0 for any number.
        bandwidth: Bits a second between a silo and the server, each way.

    Raises:
        ModelError, AdapterError: there is no such model, or the adapter does not fit it.
    """
    model = config.model
    skeleton = load_skeleton(model.name, revision=model.revision, task=model.as_task())
    adapters = resolve_plan(skeleton, config.lora, config.peft)
    text = skeleton.config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    longest = tables_of(skeleton).longest(config.train.max_length, config.peft.virtual_tokens)
    config = replace(config, train=replace(config.train, max_length=longest))
    kept = microbatch_bytes(skeleton, adapters, config)
    cuts = [
        cut_size(
            skeleton,
            adapters,
            config,
            Cuts(bottom_layers=depth, top_layers=depth, num_layers=layers),
            kept,
        )
        for depth in DEPTHS
        if 2 * depth < layers
    ]
    codecs = [
        CodecCost(name=name, step_bytes=count, seconds=count / 2 * 8 / bandwidth)
        for name in CODECS
        for count in (step_bytes(config, int(text.hidden_size), name),)
    ]
    fitting = [cut for cut in cuts if not client_memory or cut.silo.bytes <= client_memory]
    usual = [cut for cut in fitting if cut.cuts.bottom_layers <= WANTED]
    known = {codec.name: codec for codec in codecs}
    quick = [known[name] for name in PREFERRED if known[name].seconds <= SECONDS]
    return Plan(
        max_length=longest,
        cuts=cuts,
        codecs=codecs,
        cut=usual[-1] if usual else None,
        codec=quick[0] if quick else known[PREFERRED[-1]],
    )


def parse_bytes(text: str) -> int:
    """Bytes of `8GB`, `16 GiB` or `500MB`.

    Raises:
        UsageError: it is no such size.
    """
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]i?)?b?", text.strip().lower())
    unit = (found[2] or "") if found else ""
    if found is None or unit not in _BYTES or found[1].count(".") > 1 or found[1] == ".":
        raise UsageError(f"--client-memory must be a size such as 8GB or 16GiB, not {text!r}")
    return round(float(found[1]) * _BYTES[unit])


def parse_bandwidth(text: str) -> float:
    """Bits a second of `100Mbit` or `1Gbit/s`.

    Raises:
        UsageError: it is no such rate.
    """
    found = re.fullmatch(r"([\d.]+)\s*([kmg])?bit(?:/s)?", text.strip().lower())
    if found is None or found[1].count(".") > 1 or found[1] == "." or not float(found[1]):
        raise UsageError(f"--bandwidth must be a rate such as 100Mbit or 1Gbit, not {text!r}")
    return float(found[1]) * _BITS[found[2] or ""]
