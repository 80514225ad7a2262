"""The model of a run: whether it is exact when cut there, what each party holds of it."""

from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from flower_split.adapters import AdapterPlan, resolve_plan
from flower_split.apps.check import check
from flower_split.apps.checking.advice import advice, in_parameters
from flower_split.apps.checking.findings import Findings
from flower_split.apps.checking.sizes import CutSize, cut_size
from flower_split.config.sections import SplitConfig
from flower_split.reporting.figures import in_bytes
from flower_split.segments import load_skeleton, tables_of
from flower_split.segments.refusals import check_rows_apart
from flower_split.server.hosting.resolving import most_cut


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundModel:
    """A run's model, as its configuration describes it."""

    skeleton: PreTrainedModel
    """On the meta device."""
    plan: AdapterPlan
    size: CutSize
    config: SplitConfig
    """The run's, with a `train.max-length` that the model has room for."""


def look_at_model(config: SplitConfig, findings: Findings) -> FoundModel | None:
    """Note what is to be said of model, cut and adapter; what was found, where that can be said.

    Args:
        config: The run's.
        findings: Takes them.
    """
    model = config.model
    with findings.looking("model"):
        findings.ok("model", check(model.name, revision=model.revision, task=model.task))
        skeleton = load_skeleton(model.name, revision=model.revision, task=model.as_task())
        with findings.looking("model"):
            config = _as_long_as_known(config, skeleton, findings)
        if config.dp.noise:
            with findings.looking("dp"):
                check_rows_apart(skeleton.config)
        found = None
        with findings.looking("cut"):
            plan = resolve_plan(skeleton, config.lora, config.peft)
            size = cut_size(skeleton, plan, config)
            found = FoundModel(skeleton=skeleton, plan=plan, size=size, config=config)
        if found is None:
            return None
        cuts = size.cuts
        findings.ok(
            "cut",
            f"a silo holds {cuts.bottom_layers} bottom and {cuts.top_layers} top layers of "
            f"{cuts.num_layers}, {size.share:.1%} of {in_parameters(size.parameters)} parameters; "
            f"{in_parameters(size.silo.adapter + size.trunk.adapter)} are trained",
        )
        if config.split.leaves_choice:
            with findings.looking("cut"):
                most = most_cut(config.split, cuts.num_layers)
                widest = cut_size(skeleton, plan, config, most)
                findings.ok(
                    "cut",
                    f"a silo may choose to hold up to {most.bottom_layers} bottom and "
                    f"{most.top_layers} top layers, {widest.share:.1%}, for which it needs "
                    f"{in_bytes(widest.silo.bytes)}",
                )
        for text in advice(config, size.parameters):
            findings.warn("settings", text)
        return found
    return None


def _as_long_as_known(
    config: SplitConfig, skeleton: PreTrainedModel, findings: Findings
) -> SplitConfig:
    """The run's settings, with sequences as long as the model has room for, which is told.

    Raises:
        ConfigError: virtual tokens leave no room.
    """
    wanted = config.train.max_length
    longest = tables_of(skeleton).longest(wanted, config.peft.virtual_tokens)
    if longest < wanted:
        findings.ok(
            "model",
            f"texts are cut off at {longest} tokens, which its context has room for, and not at "
            f"train.max-length {wanted}",
        )
    return replace(config, train=replace(config.train, max_length=longest))
