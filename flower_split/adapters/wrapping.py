"""Wrapping one party's segment with the adapters that the plan gives it."""

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from flower_split.adapters.hollow import hollow
from flower_split.adapters.notices import without_peft_notices
from flower_split.adapters.plan import ADAPTER, CHOOSERS, AdapterPlan
from flower_split.adapters.resolving import PEFT_SAYS, digests, fixed_tensors
from flower_split.adapters.state import adapter_tensors
from flower_split.errors import AdapterError
from flower_split.segments import Cuts, TrunkPlace
from flower_split.segments.randomness import numbers_aside
from flower_split.segments.splitting import punch_client


def held_targets(model: PreTrainedModel, plan: AdapterPlan) -> tuple[str, ...]:
    """Full names of the plan's modules that this segment holds."""
    held = {
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    return tuple(name for name in plan.modules if name in held)


def held_copies(model: PreTrainedModel, plan: AdapterPlan) -> tuple[str, ...]:
    """Full names of the modules that this segment holds and the plan trains as a whole."""
    modules = dict(model.named_modules())
    return tuple(
        name
        for name in plan.copies
        if name in modules and next(modules[name].parameters(), None) is not None
    )


def check_fresh(model: PreTrainedModel, copies: tuple[str, ...]) -> None:
    """Raise `AdapterError` where something was drawn at random and is not trained."""
    fresh = [n for m in model.modules() if isinstance(m, TrunkPlace) for n in m.fresh]
    left = [name for name in fresh if not name.startswith(tuple(f"{c}." for c in copies))]
    if left:
        around = ("cls", model.base_model_prefix)  # what PEFT finds by name is inside of it
        paths = [name.split(".")[:-1] for name in left]
        named = {p[1] if len(p) > 1 and p[0] in around else p[0] for p in paths}
        raise AdapterError(
            f"the checkpoint lacks {left[0]!r} of the head, and nobody would train it: add "
            f"{', '.join(sorted(named))} to peft.modules-to-save, or take a checkpoint that has it"
        )


def wrap(
    model: PreTrainedModel, plan: AdapterPlan, adapter: str = ADAPTER
) -> PeftModel | PreTrainedModel:
    """The segment with PEFT's adapters on the modules it holds; its own weights are frozen.

    The caller's random state is kept. A segment that holds none of the plan's modules (both cuts
    0) comes back as it is, frozen. Where the method takes what the adapter begins with out of the
    layers' weights, the segment gets weights of its own first, which no other one shares.

    Raises:
        AdapterError: PEFT made other tensors of this segment than of the uncut model, or none.
    """
    model.requires_grad_(False)
    targets, copies = held_targets(model, plan), held_copies(model, plan)
    check_fresh(model, copies)
    if not targets and not copies and not plan.is_prompt:
        return model
    if not targets and not plan.is_prompt and plan.method != "TRAINABLE_TOKENS":
        raise AdapterError(
            f"this party would train {', '.join(copies)} as a whole and no other module: name a "
            "target module among its layers, or move the cut"
        )
    if plan.changes_weights:
        _own_weights(model, targets)
    buffers = frozenset(id(buffer) for buffer in model.buffers())
    try:
        with numbers_aside(), without_peft_notices():
            config = plan.peft_config((*targets, *copies))
            wrapped = get_peft_model(model, config, adapter_name=adapter)
    except PEFT_SAYS as error:
        raise AdapterError(
            f"PEFT fails on this part of the model, and not on the whole: {error}. The adapter "
            f"({plan.described or 'LoRA'}) cannot be cut here"
        ) from error
    if not isinstance(wrapped, PeftModel):
        raise TypeError(f"expected PEFT to return a PeftModel, not {type(wrapped).__name__}")
    if not plan.is_plain:
        _check(wrapped, plan, adapter, buffers)
    is_client = any(isinstance(module, TrunkPlace) for module in model.modules())
    if is_client and not plan.is_prompt:
        _name_whole(wrapped.peft_config[adapter], plan.peft_config())
    return wrapped


def check_silo_part(skeleton: PreTrainedModel, plan: AdapterPlan, cuts: Cuts) -> None:
    """Wrap a client model without weights, to learn at the server what its silos would be told.

    A method that reads the weights of its modules is left to them.

    Args:
        skeleton: Of the uncut model; it is left as it is.
        plan: Of its adapter.
        cuts: Where it is cut.

    Raises:
        AdapterError: the adapter cannot be cut there.
    """
    if plan.changes_weights:
        return
    part = hollow(skeleton)
    punch_client(part, cuts)
    wrap(part, plan)


def _name_whole(own: PeftConfig, whole: PeftConfig) -> None:
    """Have the part's settings name the modules of the uncut model.

    PEFT writes them beside the tensors, and leaves out without a word what no module is named for.
    """
    for name in (*CHOOSERS, "feedforward_modules", "modules_to_save", "trainable_token_indices"):
        if hasattr(own, name):
            setattr(own, name, getattr(whole, name))


def _own_weights(model: nn.Module, targets: tuple[str, ...]) -> None:
    for name in targets:
        module = model.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]


def _check(wrapped: PeftModel, plan: AdapterPlan, adapter: str, buffers: frozenset[int]) -> None:
    """Raise `AdapterError` unless this part's tensors are those of the uncut model."""
    whole = dict(plan.shapes)
    for name, tensor in adapter_tensors(wrapped, adapter).items():
        if whole.get(name) != tuple(tensor.shape):
            raise AdapterError(
                f"PEFT makes {name} of shape {tuple(tensor.shape)} of this part, and of the uncut "
                f"model {whole.get(name, 'no such tensor')}: this adapter cannot be cut here"
            )
    wanted = dict(plan.fixed)
    if not wanted:
        return
    for path, digest in digests(fixed_tensors(wrapped, buffers)).items():
        name = path if adapter == ADAPTER else path.replace(f".{adapter}", f".{ADAPTER}")
        if wanted.get(name, digest) != digest:
            raise AdapterError(
                f"{name} of this part is not that of the uncut model, and all parties must have "
                "the same: name target modules whose largest sizes are the same on both sides of "
                "the cut, and use the same versions of PEFT and torch at all parties"
            )
