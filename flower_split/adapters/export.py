"""Export of an adapter as a standard PEFT folder."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import load_file, save
from torch import Tensor

from flower_split.adapters.folding import patterned_config
from flower_split.adapters.plan import PEFT_PREFIX, TASK_TYPES, AdapterPlan
from flower_split.adapters.prompts import exported
from flower_split.adapters.reading import CONFIG, TENSORS, read_adapter_folder
from flower_split.adapters.state import check_state
from flower_split.durable import sync_file, sync_folder
from flower_split.errors import AdapterError
from flower_split.lowrank import combined, pair_up
from flower_split.private_files import keep_private, make_folder


def save_adapter(
    state: Mapping[str, Tensor], plan: AdapterPlan, folder: Path, *, base_model: str
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`.

    `PeftModel.from_pretrained(base, folder)` loads it into the uncut model. The adapter that was
    there stays whole until the new one is on the disk.

    Args:
        state: The whole model's adapter.
        plan: The plan it was trained with.
        folder: Made when it does not exist.
        base_model: Name or path of the uncut model, for `adapter_config.json`.

    Raises:
        AdapterError: `state` is not the whole adapter, or has values that are not finite.
    """
    check_state(state, dict(plan.shapes))
    ordered = {name: state[name] for name in plan.names}
    if plan.is_prompt:
        ordered = exported(ordered, plan.peft_config())
    return _write(ordered, plan.peft_config(), folder, base_model, _scale_of(plan))


def save_learned(
    state: Mapping[str, Tensor], plan: AdapterPlan, folder: Path, *, base_model: str
) -> Path:
    """As `save_adapter` where `state` is of the plan's own shapes, and else as `save_whole`.

    Some strategies change the ranks, or fold something into the model.
    """
    if {name: tuple(tensor.shape) for name, tensor in state.items()} == dict(plan.shapes):
        return save_adapter(state, plan, folder, base_model=base_model)
    if plan.scaling is None:
        check_state(state, dict(plan.shapes))
    return save_whole(
        state,
        folder,
        scale=_scale_of(plan) or 1.0,
        base_model=base_model,
        fan_in_fan_out=plan.fan_in_fan_out,
        task_type=TASK_TYPES[plan.task],
    )


def save_whole(
    state: Mapping[str, Tensor],
    folder: Path,
    *,
    scale: float,
    base_model: str,
    fan_in_fan_out: bool = False,
    task_type: str | None = "CAUSAL_LM",
) -> Path:
    """As `save_adapter`, of an adapter with any ranks and with what was folded into the model.

    What is written is one standard adapter of scale 1 (`rank_pattern`, `alpha_pattern` where
    modules differ in rank).

    Args:
        state: LoRA tensors, those of the adapter `folded` among them where there are any.
        folder: Made when it does not exist.
        scale: Of the tensors that are not folded ones.
        base_model: Name or path of the model, for `adapter_config.json`.
        fan_in_fan_out: Whether the modules keep their weights transposed, as GPT-2's do.
        task_type: PEFT's name of the task; None for none, as of masked language models.

    Raises:
        AdapterError: a tensor is no LoRA factor, its partner is missing, or a value is not finite.
    """
    whole = combined(state, scale)
    check_state(whole, {name: tuple(tensor.shape) for name, tensor in whole.items()})
    ranks = {p.module.removeprefix(PEFT_PREFIX): whole[p.a].shape[0] for p in pair_up(whole)}
    config = patterned_config(ranks, fan_in_fan_out=fan_in_fan_out, task_type=task_type)
    return _write(whole, config, folder, base_model, 1.0)


def _write(
    state: Mapping[str, Tensor],
    config: PeftConfig,
    folder: Path,
    base_model: str,
    scale: float | None,
) -> Path:
    folder = make_folder(folder)
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        config.save_pretrained(scratch)
        # Not save_file, whose error on a full disk is no OSError.
        data = save({n: t.contiguous() for n, t in state.items()}, metadata={"format": "pt"})
        Path(scratch, TENSORS).write_bytes(data)
        if scale is None:
            _check_tensors(Path(scratch), state)
        else:
            _check_written(Path(scratch), combined(state, scale))
        keep_private(Path(scratch))
        _move(Path(scratch), folder)
    return folder


def _move(made: Path, folder: Path) -> None:
    """Put the files of `made` in the place of those in `folder`, all on the disk.

    Whoever reads meanwhile, or after the process was killed, finds the old adapter, the new one or
    none: never the tensors of one with the configuration of the other.
    """
    names = sorted(os.listdir(made), key=lambda name: name == CONFIG)
    for name in names:
        sync_file(made / name)
    old = folder / CONFIG
    if old.exists() and old.read_bytes() != (made / CONFIG).read_bytes():
        old.unlink()
        sync_folder(folder)
    for name in names:
        os.replace(made / name, folder / name)
    sync_folder(folder)


def _scale_of(plan: AdapterPlan) -> float | None:
    """Factor of the factors' product; None where the adapter is not plain LoRA."""
    return None if plan.scaling is None else plan.scaling.factor


def _check_tensors(folder: Path, state: Mapping[str, Tensor]) -> None:
    """As `_check_written`, of the tensors of any method."""
    _compare(load_file(folder / TENSORS), state)


def _check_written(folder: Path, whole: Mapping[str, Tensor]) -> None:
    """Raise `AdapterError` unless what is read back from `folder` are the factors `whole`."""
    _compare(read_adapter_folder(folder).state, whole)


def _compare(found: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    same = found.keys() == whole.keys()
    if not same or any(not torch.equal(found[n].float(), whole[n].float()) for n in whole):
        raise AdapterError(
            "the adapter that was written is not the one that was learned when it is read back, "
            "and was removed; this is a fault of flower_split or of the installed PEFT"
        )
