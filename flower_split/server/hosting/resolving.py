"""Resolving a run: its trunk, and which adapter tensors there are and who holds them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from flower_split.adapters import AdapterPlan, initial_adapter, resolve_plan
from flower_split.adapters.methods import PREFIXES
from flower_split.adapters.wrapping import check_fresh, check_silo_part
from flower_split.config.sections import CutConfig, SplitConfig
from flower_split.config.tasks import MASKED_LM
from flower_split.delivery.pack import Pack
from flower_split.devices import autocast_dtype, resolve_device
from flower_split.errors import AdapterError, CutError
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
from flower_split.server.hosting.layout import RunLayout
from flower_split.server.key_shapes import key_shape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedRun:
    """A run's trunk before it is hosted."""

    trunk: Trunk
    whole_plan: AdapterPlan
    """Of the uncut model, whoever holds its layers."""
    prefix_tokens: int
    """Tokens of the prefix that its sessions begin with; 0 for none."""
    layout: RunLayout
    most: Cuts | None = None
    """The cut of the silo that holds most layers; None where all have the same. The trunk is that
    of the silo that holds fewest."""


def load_run_trunk(config: SplitConfig) -> Trunk:
    """The trunk of a run, loaded for it alone.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        ConfigError: there is no such device.
    """
    model, split = config.model, config.split
    return load_trunk(
        model.name,
        bottom_layers=split.bottom_layers,
        top_layers=split.top_layers,
        revision=model.revision,
        dtype=config.trunk.dtype or model.dtype,
        attention=model.attention,
        device=str(resolve_device(config.trunk.device, key="trunk.device")),
        quantization=model.quantization,
        task=model.as_task(),
    )


def resolve_run(
    config: SplitConfig,
    make_trunk: Callable[[SplitConfig], Trunk] = load_run_trunk,
    *,
    making: AbstractContextManager[object] | None = None,
    check: Callable[[AdapterPlan, tuple[str, ...]], None] | None = None,
) -> ResolvedRun:
    """Find out what the run's adapter is, and make its trunk.

    Args:
        config: The run's.
        make_trunk: Makes the trunk, once everything that needs none is found to be right.
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
    trunk = make_trunk(config)
    trunk.autocast = autocast_dtype(config.trunk.autocast)
    trunk_names = tuple(n for n in plan.names if held_by_trunk(n, path, cuts))
    if check is not None:
        check(plan, () if config.trunk.adapters == "frozen" else trunk_names)
    if model.task == MASKED_LM:  # other tasks train their heads, whatever is missing of them
        check_fresh(_client_model(config), plan.copies)
    _check_prefix(trunk, plan)
    parts = [*_segments(config, trunk, plan)]  # loaded before the context, which is no part of it
    with making:
        initial = initial_adapter(skeleton, plan, config.lora, parts, seed=config.seed)
    own, either = plan, tuple[str, ...]()
    if frozen:
        own, trunk_names = plan.without_trunk(path, cuts), ()
    elif most is not None:
        either = tuple(n for n in trunk_names if not held_by_trunk(n, path, most))
    return ResolvedRun(
        trunk=trunk,
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


def _segments(config: SplitConfig, trunk: Trunk, plan: AdapterPlan) -> Iterator[nn.Module]:
    """What holds the weights that an adapter's initialisation may read, on the CPU."""
    if plan.is_plain:
        return  # it reads none
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
