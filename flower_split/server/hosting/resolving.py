"""Resolving a run: its trunk, and which adapter tensors there are and who holds them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from flower_split.adapters import AdapterPlan, initial_adapter, resolve_plan
from flower_split.adapters.methods import PREFIXES
from flower_split.adapters.wrapping import check_fresh, check_silo_part
from flower_split.config.sections import CutConfig, SplitConfig
from flower_split.config.tasks import MASKED_LM
from flower_split.config.trunk import RAY
from flower_split.delivery.pack import Pack
from flower_split.devices import autocast_dtype, resolve_device
from flower_split.errors import AdapterError, CutError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.segments import (
    Cuts,
    Trunk,
    find_layers,
    held_by_trunk,
    layers_path,
    load_client_model,
    load_skeleton,
    load_trunk,
    tables_of,
)
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.hosting.layout import RunLayout
from flower_split.server.key_shapes import key_shape
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.placement import by_memory, check_stages, stage_devices
from flower_split.transport.messages import SessionLimits

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedRun:
    """A run's trunk before it is hosted."""

    trunks: tuple[Trunk, ...]
    """Its stages, in the order of their layers; one where one device holds them all, and none
    where other processes do."""
    cuts: Cuts
    """Around all of its layers."""
    hidden_size: int
    """H."""
    whole_plan: AdapterPlan
    """Of the uncut model, whoever holds its layers."""
    prefix_tokens: int
    """Tokens of the prefix that its sessions begin with; 0 for none."""
    layout: RunLayout
    most: Cuts | None = None
    """The cut of the silo that holds most layers; None where all have the same. The trunk is that
    of the silo that holds fewest."""


def load_run_trunk(config: SplitConfig, *, key: str = "trunk.device") -> Trunk:
    """The trunk of a run on one device, loaded for it alone.

    Args:
        config: The run's.
        key: What errors call the device's setting.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        ConfigError: there is no such device.
    """
    device = resolve_device(config.trunk.device, key=key)
    split = config.split
    return _load(config, split.bottom_layers, split.top_layers, device)


def load_run_trunks(
    config: SplitConfig, cuts: Cuts | None = None, *, key: str = "trunk.device"
) -> Sequence[Trunk]:
    """The stages of a run's trunk, on the devices that it names, loaded for it alone.

    Args:
        config: The run's.
        cuts: Around all of the trunk's layers; None finds them out.
        key: What errors call the setting of a single device; with an s, that of several.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        ConfigError: there is no such device, or more of them than the trunk has layers.
    """
    if config.trunk.engine == RAY:
        check_stages(cuts or _cuts(config), config.trunk.stages, key="trunk.stages")
        return []
    if not config.trunk.devices:
        return [load_run_trunk(config, key=key)]
    devices = stage_devices(config.trunk.devices, key=f"{key}s")
    cuts = cuts or _cuts(config)
    check_stages(cuts, len(devices), key=f"{key}s")
    return [
        _load(config, part.bottom_layers, part.top_layers, device)
        for part, device in zip(by_memory(cuts, devices), devices, strict=True)
    ]


def _cuts(config: SplitConfig) -> Cuts:
    model, split = config.model, config.split
    skeleton = load_skeleton(model.name, revision=model.revision, task=model.as_task())
    layers = len(find_layers(skeleton)[1])
    return Cuts(bottom_layers=split.bottom_layers, top_layers=split.top_layers, num_layers=layers)


def _load(config: SplitConfig, bottom_layers: int, top_layers: int, device: torch.device) -> Trunk:
    model = config.model
    return load_trunk(
        model.name,
        bottom_layers=bottom_layers,
        top_layers=top_layers,
        revision=model.revision,
        dtype=config.trunk.dtype or model.dtype,
        attention=model.attention,
        device=str(device),
        quantization=model.quantization,
        task=model.as_task(),
    )


def resolve_run(
    config: SplitConfig,
    make_trunks: Callable[[SplitConfig, Cuts], Sequence[Trunk]] = load_run_trunks,
    *,
    making: AbstractContextManager[object] | None = None,
    check: Callable[[AdapterPlan, tuple[str, ...]], None] | None = None,
) -> ResolvedRun:
    """Find out what the run's adapter is, and make its trunk.

    Args:
        config: The run's.
        make_trunks: Makes the trunk's stages, once everything that needs none is found to be
            right.
        making: A context, entered several times, in which PEFT makes adapters.
        check: Raises what keeps the run from having this plan, with these tensors in the trunk's
            adapters; called before they are made.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        AdapterError: the adapter settings do not fit the model.
        ConfigError: virtual tokens leave no place for a sequence in the model's context.
    """
    model = config.model
    skeleton = load_skeleton(model.name, revision=model.revision, task=model.as_task())
    before, wanted = config.peft.virtual_tokens, config.train.max_length
    longest = tables_of(skeleton).longest(wanted, before)
    if longest < wanted:
        logger.info(
            "train.max-length %d is more than the model's context has room for: texts are cut off "
            "at %d tokens",
            wanted,
            longest,
        )
    making = nullcontext() if making is None else making
    with making:
        plan = resolve_plan(skeleton, config.lora, config.peft)
    split, layers = config.split, len(find_layers(skeleton)[1])
    cuts = Cuts(bottom_layers=split.bottom_layers, top_layers=split.top_layers, num_layers=layers)
    path, frozen = layers_path(skeleton), config.trunk.adapters == "frozen"
    most = most_cut(split, layers) if split.leaves_choice else None
    for one in (cuts,) if most is None else (cuts, most):
        own = plan.without_trunk(path, cuts) if frozen and most is not None else plan
        check_silo_part(skeleton, own, one)
    trunks = make_trunks(config, cuts)
    for trunk in trunks:
        trunk.autocast = autocast_dtype(config.trunk.autocast)
    trunk_names = tuple(n for n in plan.names if held_by_trunk(n, path, cuts))
    if check is not None:
        check(plan, () if config.trunk.adapters == "frozen" else trunk_names)
    if model.task == MASKED_LM:  # other tasks train their heads, whatever is missing of them
        check_fresh(_client_model(config), plan.copies)
    for trunk in trunks:
        _check_prefix(trunk, plan)
    parts = [*_segments(config, trunks, plan)]  # loaded before the context, which is no part of it
    with making:
        initial = initial_adapter(skeleton, plan, config.lora, parts, seed=config.seed)
    own, either = plan, tuple[str, ...]()
    if frozen:
        own, trunk_names = plan.without_trunk(path, cuts), ()
    elif most is not None:
        either = tuple(n for n in trunk_names if not held_by_trunk(n, path, most))
    return ResolvedRun(
        trunks=tuple(trunks),
        cuts=cuts,
        hidden_size=int(skeleton.config.hidden_size),
        whole_plan=plan,
        prefix_tokens=before if plan.method in PREFIXES else 0,
        layout=RunLayout(
            mode=config.trunk.adapters,
            plan=own,
            trunk_names=trunk_names,
            either_names=either,
            initial={name: initial[name] for name in own.names},
            parameters=sum(part.numel() for part in skeleton.parameters()),
        ),
        most=most,
    )


def most_cut(split: CutConfig, layers: int) -> Cuts:
    """The cut of the silo that holds most of a model's layers.

    Raises:
        CutError: it leaves none to the trunk.
    """
    try:
        return Cuts(bottom_layers=split.most_bottom, top_layers=split.most_top, num_layers=layers)
    except CutError as error:
        raise CutError(
            f"a silo may hold {split.most_bottom} bottom and {split.most_top} top layers "
            f"(split.max-bottom-layers, split.max-top-layers) of the model's {layers}, which "
            "leaves none for the trunk: lower them"
        ) from error


def session_limits(config: SplitConfig) -> SessionLimits:
    """Of every session, as the run asks for them."""
    return SessionLimits(
        max_in_flight=config.trunk.max_in_flight,
        max_message_tokens=config.trunk.max_message_tokens,
        max_cached_tokens=config.trunk.max_cached_tokens,
    )


def engine_settings(
    config: SplitConfig, resolved: ResolvedRun, *, pack: str = ""
) -> EngineSettings:
    """How the sessions of a run are hosted.

    Args:
        config: The run's.
        resolved: Its trunk.
        pack: Digest of what is delivered to silos; empty for nothing.
    """
    layout, trunk = resolved.layout, config.trunk
    return EngineSettings(
        plan=None if layout.mode == "frozen" else resolved.whole_plan,
        mode=layout.mode,
        initial={name: layout.initial[name] for name in layout.trunk_names},
        wire=config.wire,
        optimizer=OptimizerSettings.of_training(config.train, shared=layout.mode == "shared"),
        privacy=PrivacySettings.of_training(config.dp, config.train),
        limits=session_limits(config),
        keep_optimizer=config.train.keep_optimizer,
        batching=BatchSettings.of_trunk(trunk),
        pack=pack,
        dtype=config.model.dtype,
        shares_adapter=trunk.shares_adapter,
        prefix_tokens=resolved.prefix_tokens,
    )


def open_pack(config: SplitConfig) -> Pack | None:
    """The silos' share of the model, a context manager; None where they have their own.

    Where they choose their cut it is that of the silo that holds most, and all get the same.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
    """
    if config.model.delivery != "server":
        return None
    return Pack(
        config.model.name,
        bottom_layers=config.split.most_bottom,
        top_layers=config.split.most_top,
        revision=config.model.revision,
        task=config.model.as_task(),
    )


def _segments(
    config: SplitConfig, trunks: Sequence[Trunk], plan: AdapterPlan
) -> Iterator[nn.Module]:
    """What holds the weights that an adapter's initialisation may read, on the CPU."""
    if plan.is_plain:
        return  # it reads none
    for trunk in trunks:
        yield trunk.model
    yield _client_model(config)


def _client_model(config: SplitConfig) -> PreTrainedModel:
    """What a silo holds of the model, on the CPU."""
    model, split = config.model, config.split
    return load_client_model(
        model.name,
        bottom_layers=split.bottom_layers,
        top_layers=split.top_layers,
        revision=model.revision,
        dtype=model.dtype,
        attention=model.attention,
        task=model.as_task(),
    )


def _check_prefix(trunk: Trunk, plan: AdapterPlan) -> None:
    """Raise `AdapterError` where PEFT's prefix is none for the trunk's layers, nor the model's."""
    if plan.method not in PREFIXES:
        return
    made = int(dict(plan.options)["token_dim"])
    try:
        heads, size = key_shape(trunk)
    except ValueError as error:
        raise AdapterError(
            f"peft.type {plan.method}: the layers of this {trunk.config.model_type} model take no "
            f"prefix, {error}: use PROMPT_TUNING"
        ) from error
    if heads * size != made:
        raise AdapterError(
            f"peft.type {plan.method}: PEFT makes keys of {made} numbers for this "
            f"{trunk.config.model_type} model, whose layers keep {heads} x {size}: it does not "
            "work with the whole model either, use PROMPT_TUNING"
        )
