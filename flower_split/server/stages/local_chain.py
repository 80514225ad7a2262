"""A chain in this process: its stages on devices of their own, each with a compute thread."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from flower_split.devices.memory import free_memory
from flower_split.segments import Cuts, Trunk, layers_path
from flower_split.segments.refusals import context_length
from flower_split.server.handshake import check_wire
from flower_split.server.stages.chain import Chain, ChainModel, StagePlace, check_chain_can
from flower_split.server.stages.chain_limits import chain_limits
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.local_stage import Coming, LocalStage
from flower_split.server.stages.stage_engine import StageEngine


def local_chain(
    trunks: Sequence[Trunk],
    settings: EngineSettings,
    *,
    turns: Sequence[AbstractContextManager[object]] = (),
) -> Chain[Coming]:
    """The trunk whose layers `trunks` hold, in their order.

    Args:
        trunks: Of one model, each beginning with the layer after the last one's; they are the
            chain's from now on.
        settings: Of the whole trunk. Stages on one device share the memory that is free.
        turns: Of every stage, as `TrunkEngine` takes them; none where every device is its stages'
            alone.

    Raises:
        ConfigError: a chain cannot do this exactly, and says what can.
        AdapterError: the plan or what sessions start from does not fit a stage.
    """
    first, last = trunks[0], trunks[-1]
    terms = settings.terms(
        fingerprint=first.fingerprint,
        cuts=Cuts(
            bottom_layers=first.cuts.bottom_layers,
            top_layers=last.cuts.top_layers,
            num_layers=first.cuts.num_layers,
        ),
        weights_dtype=str(first.dtype).removeprefix("torch."),
    )
    check_chain_can(terms)
    if settings.wire is not None:
        check_wire(settings.wire)
    room = free_for_passes(trunks)
    stages = [
        LocalStage(
            StageEngine(
                trunk,
                replace(
                    settings,
                    batching=replace(
                        settings.batching,
                        max_memory=settings.batching.max_memory or room[number] / 1e9,
                    ),
                ),
                is_last=trunk is last,
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
        limits=chain_limits(
            settings.limits, terms.plan, stages, shares_adapter=settings.shares_adapter
        ),
        keep_optimizer=settings.keep_optimizer,
        snapshots=settings.snapshots,
    )


def free_for_passes(trunks: Sequence[Trunk]) -> list[float]:
    """Bytes that a pass of each may need by default; those on one device share what it has."""
    beside = Counter(trunk.device for trunk in trunks)
    return [free_memory(trunk.device) / beside[trunk.device] for trunk in trunks]
