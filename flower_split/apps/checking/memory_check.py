"""The memory of a run: what each party adds to its process, and whether this machine has it."""

from collections import Counter
from dataclasses import replace

import psutil

from flower_split.apps.checking.findings import Findings
from flower_split.apps.checking.model_check import FoundModel
from flower_split.apps.checking.sizes import CutSize, cut_size
from flower_split.client.node_config import NodeConfig
from flower_split.config.model import CutConfig
from flower_split.devices.memory import available_memory
from flower_split.reporting.figures import in_bytes
from flower_split.segments import Cuts

TOPIC = "memory"


def look_at_memory(model: FoundModel, longest: int, silos: int, findings: Findings) -> None:
    """Note what a silo and the server need, and refuse what this machine has not.

    Batches are as long as their longest sequence, so that what `train.max-length` allows is needed
    only where the data has such texts.

    Args:
        model: The run's.
        longest: Tokens of the longest sequence that was seen; 0 where none was.
        silos: Silos that a simulation computes with on this machine; 0 for a deployment.
        findings: Takes them.
    """
    train = model.config.train
    bound = train.max_length
    tokens = min(longest, bound) or bound
    size = model.size if tokens == bound else _at(model, tokens)
    more = "" if tokens == bound else f"; {in_bytes(model.size.silo.bytes)} a silo with {bound}"
    findings.ok(
        TOPIC,
        f"a silo needs about {in_bytes(size.silo.bytes)}, the server {in_bytes(size.trunk.bytes)} "
        f"and {in_bytes(size.trunk.adapter_bytes + size.trunk.activation_bytes)} for each further "
        f"silo at once; a step is {in_bytes(size.step_bytes)} on the wire: with {train.batch_size} "
        f"x {tokens} tokens{', the longest that was seen' if more else ''}{more}",
    )
    if not silos:
        return
    total = int(psutil.virtual_memory().total)
    less = "take fewer silos, a smaller train.batch-size or train.max-length"
    needed = _together(model, size, silos, tokens)
    if needed > total and longest:
        text = (
            f"{_said(needed, silos, tokens)} {in_bytes(total)}: {less}, or model.dtype 'bfloat16'"
        )
        findings.refuse(TOPIC, text)
    elif needed > (free := available_memory()):
        text = f"{_said(needed, silos, tokens)} {in_bytes(free)} free now: {less}"
        findings.warn(TOPIC, f"{text}, or end what runs here")
    elif (most := _together(model, model.size, silos, bound)) > total:
        text = f"{_said(most, silos, bound)} {in_bytes(total)}: {less}"
        findings.warn(TOPIC, f"{text}, should there be such texts")


def _at(model: FoundModel, tokens: int, cuts: Cuts | None = None) -> CutSize:
    """The sizes with sequences of so many tokens, at the run's cut or another one."""
    config = model.config
    shorter = replace(config, train=replace(config.train, max_length=tokens))
    return cut_size(model.skeleton, model.plan, shorter, cuts)


def _together(model: FoundModel, size: CutSize, silos: int, tokens: int) -> int:
    """Bytes of all silos and the trunks; of silos that have their cuts in turn, of each its own."""
    split = model.config.split
    trunk = size.trunk.bytes + (model.config.trunk.replicas - 1) * size.trunk.weights_bytes
    if not (split.bottoms or split.tops):
        return silos * size.silo.bytes + trunk
    nodes = (NodeConfig(partition_id=number, num_partitions=silos) for number in range(silos))
    counts = Counter(node.own_cut(split) for node in nodes)
    layers = size.cuts.num_layers
    own = (
        count * _at(model, tokens, Cuts(**_layers(cut), num_layers=layers)).silo.bytes
        for cut, count in counts.items()
    )
    return sum(own) + trunk


def _layers(cut: CutConfig) -> dict[str, int]:
    return {"bottom_layers": cut.bottom_layers, "top_layers": cut.top_layers}


def _said(needed: int, silos: int, tokens: int) -> str:
    return (
        f"{silos} silos at once and the trunk need about {in_bytes(needed)} for texts of {tokens} "
        "tokens, and this machine has"
    )
