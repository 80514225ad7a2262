"""A chain in this process: its stages on devices of their own, each with a compute thread."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import Tensor

from flower_split.adapters import AdapterPlan
from flower_split.config.wire import WireConfig
from flower_split.devices.memory import free_memory
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.segments import Cuts, Trunk, layers_path
from flower_split.segments.refusals import context_length
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.handshake import check_wire
from flower_split.server.session_terms import SessionTerms
from flower_split.server.stages.chain import Chain, ChainModel, StagePlace, check_chain_can
from flower_split.server.stages.chain_limits import chain_limits
from flower_split.server.stages.local_stage import Coming, LocalStage
from flower_split.server.stages.stage_engine import StageEngine
from flower_split.transport.messages import SessionLimits


def local_chain(
    trunks: Sequence[Trunk],
    *,
    plan: AdapterPlan | None = None,
    mode: str = "frozen",
    initial: Mapping[str, Tensor] | None = None,
    wire: WireConfig | None = None,
    optimizer: OptimizerSettings | None = None,
    privacy: PrivacySettings | None = None,
    limits: SessionLimits | None = None,
    keep_optimizer: bool = False,
    batching: BatchSettings | None = None,
    pack: str = "",
    dtype: str = "",
    shares_adapter: bool = False,
    follows_autocast: bool = True,
    prefix_tokens: int | None = None,
    turns: Sequence[AbstractContextManager[object] | None] = (),
) -> Chain[Coming]:
    """The trunk whose layers `trunks` hold, in their order; arguments are those of `TrunkEngine`.

    Args:
        trunks: Of one model, each beginning with the layer after the last one's; they are the
            chain's from now on.
        plan: The whole model's adapter plan.
        mode: Of the whole trunk.
        initial: The trunk's part of an adapter that sessions start from.
        wire: As for `TrunkEngine`, as all that follow.
        optimizer: The same.
        privacy: The same.
        limits: The same.
        keep_optimizer: The same.
        batching: The same, of every stage. Stages on one device share the memory that is free.
        pack: The same.
        dtype: The same.
        shares_adapter: The same.
        follows_autocast: The same.
        prefix_tokens: The same.
        turns: Of every stage; none where every device is its stages' alone.

    Raises:
        ConfigError: a chain cannot do this exactly, and says what can.
        AdapterError: the plan or `initial` does not fit a stage.
    """
    first, last = trunks[0], trunks[-1]
    plan = None if mode == "frozen" else plan
    terms = SessionTerms(
        fingerprint=first.fingerprint,
        cuts=Cuts(
            bottom_layers=first.cuts.bottom_layers,
            top_layers=last.cuts.top_layers,
            num_layers=first.cuts.num_layers,
        ),
        weights_dtype=str(first.dtype).removeprefix("torch."),
        mode=mode,
        plan=plan,
        wire=wire,
        optimizer=optimizer,
        privacy=privacy,
        pack=pack,
        dtype=dtype,
        prefix_tokens=prefix_tokens,
    )
    check_chain_can(terms)
    if wire is not None:
        check_wire(wire)
    limits = limits or SessionLimits()
    batching = batching or BatchSettings()
    beside = Counter(trunk.device for trunk in trunks)
    stages = [
        LocalStage(
            StageEngine(
                trunk,
                is_last=trunk is last,
                plan=plan,
                mode=mode,
                initial=initial,
                limits=limits,
                keep_optimizer=keep_optimizer,
                batching=replace(
                    batching,
                    max_memory=batching.max_memory
                    or free_memory(trunk.device) / beside[trunk.device] / 1e9,
                ),
                follows_autocast=follows_autocast,
                turns=turns[number] if turns else None,
            )
        )
        for number, trunk in enumerate(trunks)
    ]
    model = ChainModel(
        layers_path=layers_path(first.model),
        model_type=first.config.model_type,
        hidden_size=first.hidden_size,
        context_length=context_length(first.config),
        entry=StagePlace(dtype=first.dtype, device=first.device),
        exit=StagePlace(dtype=last.dtype, device=last.device),
    )
    return Chain(
        [stages],
        model,
        terms,
        limits=chain_limits(limits, plan, stages, shares_adapter=shares_adapter),
        keep_optimizer=keep_optimizer,
    )
