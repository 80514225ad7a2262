"""The model of a run: whether it is exact when cut there, what each party holds of it."""

import psutil

from flower_split.adapters import resolve_plan
from flower_split.apps.check import check
from flower_split.apps.checking.advice import advice, in_parameters
from flower_split.apps.checking.findings import Findings
from flower_split.apps.checking.sizes import CutSize, cut_size
from flower_split.config.sections import SplitConfig
from flower_split.devices.memory import available_memory
from flower_split.reporting.figures import in_bytes
from flower_split.segments import load_skeleton
from flower_split.segments.refusals import check_length


def look_at_model(config: SplitConfig, findings: Findings, silos: int = 0) -> CutSize | None:
    """Note what is to be said of model, cut, adapter and memory; the sizes, where they are known.

    Args:
        config: The run's.
        findings: Takes them.
        silos: Silos that a simulation computes with on this machine; 0 for a deployment.
    """
    model = config.model
    with findings.looking("model"):
        findings.ok("model", check(model.name, revision=model.revision, task=model.task))
        skeleton = load_skeleton(model.name, revision=model.revision, task=model.as_task())
        with findings.looking("model"):
            before = int(config.peft.options.get("num_virtual_tokens", 0))
            check_length(skeleton.config, config.train.max_length, before)
        size = None
        with findings.looking("cut"):
            plan = resolve_plan(skeleton, config.lora, config.peft)
            size = cut_size(skeleton, plan, config)
        if size is None:
            return None
        cuts = size.cuts
        findings.ok(
            "cut",
            f"a silo holds {cuts.bottom_layers} bottom and {cuts.top_layers} top layers of "
            f"{cuts.num_layers}, {size.share:.1%} of {in_parameters(size.parameters)} parameters; "
            f"{in_parameters(size.silo.adapter + size.trunk.adapter)} are trained",
        )
        for text in advice(config, size.parameters):
            findings.warn("settings", text)
        _look_at_memory(size, silos, findings)
        return size
    return None


def _look_at_memory(size: CutSize, silos: int, findings: Findings) -> None:
    findings.ok(
        "memory",
        f"a silo needs about {in_bytes(size.silo.bytes)}, the server {in_bytes(size.trunk.bytes)} "
        f"and {in_bytes(size.trunk.adapter_bytes + size.trunk.activation_bytes)} for each further "
        f"silo at once; a step is {in_bytes(size.step_bytes)} on the wire",
    )
    if not silos:
        return
    needed = silos * size.silo.bytes + size.trunk.bytes
    free = available_memory()
    if needed <= free:
        return
    less = "take fewer silos, a smaller train.batch-size or train.max-length"
    said = (
        f"{silos} silos at once and the trunk need about {in_bytes(needed)}, and this machine has"
    )
    total = int(psutil.virtual_memory().total)
    if needed > total:
        findings.refuse("memory", f"{said} {in_bytes(total)}: {less}, or model.dtype 'bfloat16'")
    else:
        findings.warn("memory", f"{said} {in_bytes(free)} free now: {less}, or end what runs here")
