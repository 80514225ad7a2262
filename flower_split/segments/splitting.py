"""Cutting a stock model in memory."""

import copy
from typing import Any

from transformers import PreTrainedModel

from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import ModelError, UnsupportedFamilyError
from flower_split.segments.cuts import Cuts
from flower_split.segments.ends import Bottom, Top
from flower_split.segments.families import Family, known_family
from flower_split.segments.fingerprint import fingerprint
from flower_split.segments.layers import find_layers
from flower_split.segments.loading.quantization import keep_unpacked
from flower_split.segments.outside import head_of, outside_modules
from flower_split.segments.pass_through import PassThrough, Stub, TrunkSlot
from flower_split.segments.proving import family_of
from flower_split.segments.refusals import refuse_config, refuse_model
from flower_split.segments.stock_classes import stock_class, task_of_model
from flower_split.segments.trunk import Trunk
from flower_split.segments.watching.as_cut import LayersAsCut


def split_model(
    model: PreTrainedModel, bottom_layers: int, top_layers: int, *, family: Family | None = None
) -> tuple[PreTrainedModel, Trunk]:
    """The client model and the trunk of a stock model, which is left as it is.

    Both share its parameters; none is copied. 4-bit weights are kept unpacked in all three.

    Args:
        model: A stock `…ForCausalLM`.
        bottom_layers: Layers the silo holds after the embeddings.
        top_layers: Layers the silo holds before the head.
        family: Entry of a family that is not registered.

    Raises:
        ModelError: this is not a whole causal language model, or an option of it needs what the
            trunk does not send.
        CutError: the cuts do not fit the model.
        UnsupportedFamilyError: the family is not known to be exact when it is cut.
    """
    cuts, family = _examine(model, bottom_layers, top_layers, family)
    client = share(model)
    punch_client(client, cuts, family)
    note_cut(client, cuts)
    trunk = share(model)
    punch_trunk(trunk, cuts, family)
    return client, Trunk(trunk, cuts, fingerprint(model.config))


def split_segments(
    model: PreTrainedModel, bottom_layers: int, top_layers: int, *, family: Family | None = None
) -> tuple[Bottom, Trunk, Top]:
    """Bottom, trunk and top of a stock model as three modules; the model is left as it is.

    They share its parameters; a tied head's weight is in the bottom and in the top. PEFT can wrap
    the `.model` of each, whose names are those of the full model.

    Args:
        model: A stock `…ForCausalLM`.
        bottom_layers: Layers of the bottom.
        top_layers: Layers of the top.
        family: Entry of a family that is not registered.

    Raises:
        ModelError: this is not a whole causal language model, or an option of it needs what the
            trunk does not send.
        CutError: the cuts do not fit the model.
        UnsupportedFamilyError: the family is not known to be exact when it is cut.
    """
    if (task := task_of_model(model)) != CAUSAL_LM:
        raise ModelError(
            f"bottom, trunk and top as modules of their own are for causal language models, and "
            f"this {type(model).__name__} is for {task}: cut it with split_model"
        )
    cuts, family = _examine(model, bottom_layers, top_layers, family)
    bottom, trunk, top = share(model), share(model), share(model)
    _keep(bottom, cuts.bottom_range, family, before=True)
    punch_trunk(trunk, cuts, family)
    _keep(top, cuts.top_range, family, after=True)
    mark = fingerprint(model.config)
    return Bottom(bottom, cuts, mark), Trunk(trunk, cuts, mark), Top(top, cuts, mark)


def share(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules anew around the same parameters, and around the same buffers of layers.

    Buffers outside the layers are copied: the stock code may write to rotary frequencies.
    """
    _, layers = find_layers(model)
    tensors = [*model.parameters(), *layers.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def punch_client(model: PreTrainedModel, cuts: Cuts, family: Family | None = None) -> None:
    """Put stand-ins for the trunk's layers into `model`."""
    refuse_config(model.config)
    family = family or family_of(model.config)
    _, layers = find_layers(model)
    mark = fingerprint(model.config)
    for method in ("save_pretrained", "push_to_hub"):
        setattr(model, method, _refuse_saving)
    for method in ("init_continuous_batching", "generate_batch"):
        setattr(model, method, _refuse_paging)
    for index in cuts.trunk_range:
        layers[index] = (
            TrunkSlot(layers[index], family=family, cuts=cuts, fingerprint=mark)
            if index == cuts.bottom_layers
            else PassThrough(layers[index], returns_tuple=family.returns_tuple)
        )
    if not family.caches:
        _set_uncached(model)


def note_cut(model: PreTrainedModel, cuts: Cuts) -> None:
    """Remember at the trunk's place what the layers of a client model are, with their weights."""
    _, layers = find_layers(model)
    place: Any = layers[cuts.bottom_layers]
    place.as_cut = LayersAsCut(model, cuts)


def _refuse_saving(*args: Any, **kwargs: Any) -> None:
    """In place of a client model's `save_pretrained`: a part must not be taken for the whole."""
    raise ModelError(
        "a client model is a part of the model and is not saved as if it were the whole. Save the "
        "adapter: save_pretrained of the PeftModel around it, or flower-split export"
    )


def _refuse_paging(*args: Any, **kwargs: Any) -> None:
    """In place of continuous batching, which logs what fails in it and returns nothing."""
    raise ModelError(
        "continuous batching keeps the keys of all layers in pages of its own, and those of the "
        "trunk's layers are there: use generate(), for several prompts with padding"
    )


def punch_trunk(model: PreTrainedModel, cuts: Cuts, family: Family | None = None) -> None:
    """Put stand-ins for everything but the trunk's layers into `model`."""
    refuse_config(model.config)
    family = family or family_of(model.config)
    _keep(model, cuts.trunk_range, family)
    if not family.caches:
        _set_uncached(model)


def _set_uncached(model: PreTrainedModel) -> None:
    """Have the model make no cache by itself."""
    model.config.use_cache = False
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.use_cache = False


def _examine(
    model: PreTrainedModel, bottom_layers: int, top_layers: int, family: Family | None
) -> tuple[Cuts, Family]:
    refuse_model(model)
    keep_unpacked(model)
    family = family or _family_of_class(model)
    _, layers = find_layers(model)
    cuts = Cuts(bottom_layers=bottom_layers, top_layers=top_layers, num_layers=len(layers))
    return cuts, family


def _family_of_class(model: PreTrainedModel) -> Family:
    task = task_of_model(model)
    config = copy.deepcopy(model.config)
    config.architectures = [stock_class(config, task).__name__]
    if known_family(config.model_type, task) is None:
        stock = stock_class(config)
        if type(model) is not stock:
            raise UnsupportedFamilyError(
                f"a family is proved for its stock class {stock.__name__}, not for a "
                f"{type(model).__name__}; run check_exact(model, bottom_layers, top_layers, "
                "family=…) and pass that family here"
            )
    return family_of(config)


def _keep(
    model: PreTrainedModel,
    held: range,
    family: Family,
    *,
    before: bool = False,
    after: bool = False,
) -> None:
    """Put stand-ins for everything but the layers `held` and the modules before or after them."""
    _, layers = find_layers(model)
    dtype = model.dtype
    head = head_of(model)
    for owner, name, module in outside_modules(model, layers):
        is_after = module is head or name in family.after
        if not (after if is_after else before):
            setattr(owner, name, Stub(module, dtype))
    for index in range(len(layers)):
        if index not in held:
            layers[index] = PassThrough(layers[index], returns_tuple=family.returns_tuple)
    # The tie between embeddings and head is the silo's, which ties them by sharing the tensor.
    model.all_tied_weights_keys = {}
