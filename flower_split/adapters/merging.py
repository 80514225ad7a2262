"""Merging an adapter into a model's weights, compared with base and adapter before it is done.

What is compared is exact: every weight, as it is merged, with the sum of what it was and the
adapter's product, and every tensor of the folder, read back as stock code reads it, with the merged
one's bytes. No second model stands in memory meanwhile.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flower_split.adapters.notices import without_peft_notices
from flower_split.adapters.plan import PEFT_PREFIX
from flower_split.adapters.reading import read_adapter_folder
from flower_split.config.tasks import CAUSAL, Task
from flower_split.errors import AdapterError, FlowerSplitError, ModelError, WeightsError
from flower_split.lowrank import pair_up
from flower_split.segments import load_tokenizer, resolve_source
from flower_split.segments.loading.skeleton import read_config
from flower_split.segments.stock_classes import auto_class
from flower_split.tensor_digest import tensor_digest

logger = logging.getLogger(__name__)

_ROWS = 1024  # of a weight that are compared at once


@dataclass(frozen=True, kw_only=True, eq=False)
class _Update:
    """What an adapter adds to one module's weight: the product of two factors."""

    left: Tensor
    """(rows of the weight, r), float32."""
    right: Tensor
    """(r, columns of the weight), float32."""


def save_merged(adapter: Path, model: str, folder: Path, *, task: Task = CAUSAL) -> None:
    """Write `model` with the adapter merged into its weights, in the weights' own dtype.

    Weights that the model ties are untied where the adapter changes one of them: the written
    model has each as base and adapter have it, and `tie_word_embeddings` is off.

    Args:
        adapter: A PEFT folder.
        model: The uncut model, as for `resolve_source`.
        folder: Gets the model in safetensors, and its tokenizer where it has one.
        task: What the model is for, without labels: adapters with a head are not merged.

    Raises:
        ModelError: `model` cannot be loaded, or cannot be written.
        AdapterError: the adapter does not fit it, or what was merged or written differs from base
            and adapter.
    """
    state = read_adapter_folder(adapter).state
    base = _load_base(model, task)
    stock = auto_class(base.config)
    updates = _updates(base, state, model)
    before = _digests(base)
    _untie(base, updates)
    written = _digests(_merge(base, adapter, updates, model))
    _check_left_alone(before, written, updates)
    _save(base, folder, model)
    del base
    _check_written(folder, written, model, stock)
    try:
        load_tokenizer(model).save_pretrained(folder)
    except WeightsError as error:  # a model without a tokenizer is complete without one
        logger.warning("the merged model has no tokenizer: %s", error)


def _load_base(model: str, task: Task) -> PreTrainedModel:
    try:
        source = resolve_source(model)
        config = read_config(source, task)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError("it is quantized; give the model in float32, bfloat16 or float16")
        base, info = auto_class(config).from_pretrained(
            source.repository or str(source.folder),
            config=config,
            dtype="auto",
            output_loading_info=True,
            **({"revision": source.folder.name} if source.repository else {}),
        )
    except (FlowerSplitError, OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"{model} cannot be loaded for {task.name}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{model} lacks {len(missing)} tensors of a {config.model_type} model (first: "
            f"{missing[0]!r}); give the checkpoint of the whole model"
        )
    whole: PreTrainedModel = base
    return whole.requires_grad_(False)


def _updates(base: PreTrainedModel, state: Mapping[str, Tensor], model: str) -> dict[str, _Update]:
    """What the adapter adds, by name of the module.

    Raises:
        AdapterError: the model has no such module, or it has another shape.
    """
    modules = dict(base.named_modules())
    found: dict[str, _Update] = {}
    for pair in pair_up(state):
        name = pair.module.removeprefix(PEFT_PREFIX)
        module = modules.get(name)
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            kind = "no module" if module is None else f"a {type(module).__name__} at"
            raise AdapterError(
                f"the adapter cannot be merged into {model}, which has {kind} {name!r}: it was "
                "trained with another model"
            )
        a, b = state[pair.a].float(), state[pair.b].float()
        update = _Update(left=b, right=a)
        if not isinstance(module, nn.Linear):  # which keep their weights transposed
            update = _Update(left=a.mT, right=b.mT)
        shape = (update.left.shape[0], update.right.shape[1])
        if tuple(module.weight.shape) != shape:
            raise AdapterError(
                f"the adapter cannot be merged into {model}, whose {name!r} has the shape "
                f"{tuple(module.weight.shape)} and not {shape}: it was trained with another model"
            )
        found[name] = update
    return found


def _untie(base: PreTrainedModel, updates: Mapping[str, _Update]) -> None:
    """Give every weight that the adapter changes, and those tied to it, a tensor of its own."""
    sharing: dict[int, list[str]] = defaultdict(list)
    for name, parameter in base.named_parameters(remove_duplicate=False):
        sharing[id(parameter)].append(name)
    for names in sharing.values():
        if len(names) > 1 and any(name.rpartition(".")[0] in updates for name in names):
            for name in names[1:]:
                owner, _, leaf = name.rpartition(".")
                value = base.get_parameter(name).detach().clone()
                setattr(base.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
            base.config.tie_word_embeddings = False
            base.all_tied_weights_keys = {}
            logger.info(
                "%s are no longer tied: the adapter changes them apart", " and ".join(names)
            )


def _merge(
    base: PreTrainedModel, adapter: Path, updates: Mapping[str, _Update], model: str
) -> PreTrainedModel:
    """Merge the adapter into `base` by PEFT, and compare every weight with what it must be."""
    merged: set[str] = set()
    try:
        with torch.no_grad(), without_peft_notices():
            wrapped = PeftModel.from_pretrained(base, str(adapter))
            for path, layer in wrapped.named_modules():
                if not isinstance(layer, LoraLayer):
                    continue
                name = path.removeprefix(PEFT_PREFIX)
                stock: Any = layer.get_base_layer()
                before = stock.weight.detach().clone()
                layer.merge(safe_merge=True)
                _compare(name, before, stock.weight, updates.get(name))
                merged.add(name)
            wrapped.unload()
    except (ValueError, RuntimeError) as error:
        if isinstance(error, FlowerSplitError):
            raise
        raise AdapterError(f"the adapter cannot be merged into {model}: {error}") from error
    if left := updates.keys() - merged:
        raise AdapterError(
            f"PEFT did not merge {len(left)} modules of the adapter (first: {min(left)!r}) into "
            f"{model}; use the adapter with PeftModel.from_pretrained instead"
        )
    return base


def _compare(name: str, before: Tensor, after: Tensor, update: _Update | None) -> None:
    """Raise `AdapterError` unless `after` is `before` and the update, rounded to its dtype."""
    precision, single = torch.finfo(after.dtype).eps, torch.finfo(torch.float32).eps
    for start in range(0, len(before), _ROWS):
        rows = slice(start, start + _ROWS)
        old, new = before[rows].float(), after[rows].float()
        added, size = torch.zeros_like(old), torch.zeros_like(old)
        if update is not None:
            added = update.left[rows] @ update.right
            size = update.left[rows].abs() @ update.right.abs()
        # Each of the sum's terms is rounded once to the weight's dtype, and the sum; the product
        # adds up float32 values.
        bound = precision * (new.abs() + added.abs()) + 16 * single * (size + old.abs())
        error = (new - (old + added)).abs()
        if not bool((error <= bound).all()):
            raise AdapterError(
                f"merging went wrong in {name!r}: a weight differs by {float(error.max()):.3g} "
                "from base and adapter; nothing was written. Use the adapter with "
                "PeftModel.from_pretrained instead"
            )


def _check_left_alone(
    before: Mapping[str, str], after: Mapping[str, str], updates: Mapping[str, _Update]
) -> None:
    """Raise `AdapterError` if the merge changed a tensor that the adapter is not for."""
    for name, digest in after.items():
        if name.removesuffix(".weight") not in updates and digest != before.get(name):
            raise AdapterError(
                f"merging went wrong: it changed {name!r}, which the adapter is not for; nothing "
                "was written. Use the adapter with PeftModel.from_pretrained instead"
            )


def _save(merged: PreTrainedModel, folder: Path, model: str) -> None:
    try:
        merged.save_pretrained(folder)
    except ValueError as error:
        raise ModelError(
            f"{model} cannot be written with the adapter in it: {error}. Mend its config.json or "
            "generation_config.json"
        ) from error


def _check_written(folder: Path, written: Mapping[str, str], model: str, stock: Any) -> None:
    """Raise `AdapterError` unless stock code reads from `folder` what `written` tells of."""
    try:
        found = _digests(stock.from_pretrained(str(folder), dtype="auto"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AdapterError(f"the merged model cannot be read back: {error}") from error
    names = written.keys() | found.keys()
    differing = {name for name in names if written.get(name) != found.get(name)}
    if differing:
        raise AdapterError(
            f"{model} with the adapter in it does not read back as it was written: "
            f"{len(differing)} tensors differ (first: {min(differing)!r}), as where a family ties "
            "its weights whatever its config.json says. Use the adapter with "
            "PeftModel.from_pretrained instead"
        )


def _digests(model: PreTrainedModel) -> dict[str, str]:
    """A digest of every tensor of a checkpoint of `model`: dtype, shape and bytes."""
    return {name: tensor_digest([("", tensor)]) for name, tensor in model.state_dict().items()}
