"""The stock loader of transformers, for a model with holes.

Renamed keys, fused experts, tied weights and buffers outside the checkpoint are its business;
here it is given the tensors that a party holds and the stock class with holes.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import FlowerSplitError, WeightsError
from flower_split.segments.loading.experts import unlike_expert
from flower_split.segments.loading.quantization import (
    QuantizationConfig,
    check_quantized,
    keep_unpacked,
)
from flower_split.segments.pass_through import TrunkPlace
from flower_split.segments.randomness import numbers_aside, random_numbers
from flower_split.segments.stock_classes import task_of

_progress: Any = transformers_logging

# transformers sets process-wide defaults (dtype, device, initialisers) while it makes a model.
STOCK_LOCK = threading.RLock()

_HEAD_SEED = 0
"""Of what a checkpoint lacks of the head; what is trained of it is replaced by the run's own."""


def load_stock(
    stock: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, Any],
    *,
    punch: Callable[[PreTrainedModel], None],
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
    name: str,
    path: Path,
    quantization: QuantizationConfig | None = None,
    head: Callable[[], tuple[str, ...]] = tuple,
) -> PreTrainedModel:
    """A model of the class `stock`, after `punch`, with `tensors` for all that is left of it.

    Args:
        stock: The stock class.
        config: Of the uncut model; it is not changed.
        tensors: By checkpoint name: safetensors slices, which read one when they are indexed.
        punch: Makes the holes in the model before it has weights.
        dtype: Of weights and activations.
        device: Where every tensor is put as soon as it has been read.
        attention: Attention implementation.
        name: Of the model; PEFT writes it into an adapter, as that of the base model.
        path: Where the tensors are from, for errors.
        quantization: Of each tensor as it has been read; None for none.
        head: Gives the names of modules that may be missing. They are drawn from one seed, and
            the layer at the trunk's place knows them.

    Raises:
        WeightsError: a tensor is missing or has the wrong shape.
    """
    seed = None if task_of(config) == CAUSAL_LM else _HEAD_SEED
    drawn = numbers_aside(device) if seed is None else random_numbers(device, seed)
    with STOCK_LOCK, _kept_reports() as reports, drawn:
        try:
            loader: Any = _punched_class(stock, punch, name)
            model, info = loader.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                attn_implementation=attention,
                ignore_mismatched_sizes=True,  # they are in `info`, with their shapes
                output_loading_info=True,
                **(
                    placement(device) if quantization is None else _quantizing(quantization, device)
                ),
            )
        except FlowerSplitError:
            raise  # from `punch`
        except (RuntimeError, ValueError, ImportError, OSError, SafetensorError) as exc:
            reason = unlike_expert(_shapes(tensors)) or _reason(reports) or str(exc)
            raise WeightsError(
                f"the tensors of {path} do not make a {config.model_type} model: {reason}"
            ) from exc
    fresh = _missing_of(head, info)
    info["missing_keys"] = {*info["missing_keys"]} - {*fresh}
    _check(info, tensors, path)
    check_quantized(model, quantization)
    keep_unpacked(model)
    for module in model.modules():
        if isinstance(module, TrunkPlace):
            module.fresh = fresh
    # Of its own class again, the model can be copied, saved and wrapped like any other.
    model.__class__ = stock
    torch.nn.Module.to(model, device)  # what is in no checkpoint: stand-ins, rotary frequencies
    return cast(PreTrainedModel, model)


def _missing_of(head: Callable[[], tuple[str, ...]], info: dict[str, Any]) -> tuple[str, ...]:
    """The tensors of the head that are missing; a head of other labels than these is refused."""
    names = {*info["missing_keys"], *(str(entry[0]) for entry in info["mismatched_keys"])}
    if not names:
        return ()
    paths = tuple(f"{name}." for name in head())
    for name, found, expected in info["mismatched_keys"]:
        if str(name).startswith(paths):
            raise WeightsError(
                f"the checkpoint's {name} has the shape {tuple(found)}, and with the run's labels "
                f"it is {tuple(expected)}: name the labels that the checkpoint was trained with in "
                "model.labels, or take a checkpoint without this head"
            )
    return tuple(sorted(name for name in info["missing_keys"] if name.startswith(paths)))


def placement(device: torch.device) -> dict[str, Any]:
    """The stock loader's arguments by which it puts a whole model on `device`."""
    return {} if device.type == "cpu" else {"device_map": {"": device}}


def _quantizing(quantization: QuantizationConfig, device: torch.device) -> dict[str, Any]:
    # without a map the stock loader would choose an accelerator by itself
    return {"quantization_config": quantization, "device_map": {"": device}}


def _punched_class(
    stock: type[PreTrainedModel], punch: Callable[[PreTrainedModel], None], name: str
) -> type[PreTrainedModel]:
    """The class `stock`, by the same name, whose models have holes from their making."""

    def make(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        config.name_or_path = name
        stock.__init__(self, config, *args, **kwargs)
        punch(self)

    members = {
        "__init__": make,
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
    }
    return cast(type[PreTrainedModel], type(stock.__name__, (stock,), members))


def _check(info: dict[str, Any], tensors: dict[str, Any], path: Path) -> None:
    if info["mismatched_keys"] and (reason := unlike_expert(_shapes(tensors))):
        raise WeightsError(f"{path} does not fit together: {reason}")
    for name, found, expected in sorted(info["mismatched_keys"], key=lambda entry: str(entry[0])):
        raise WeightsError(
            f"the tensor {name!r} in {path} has the shape {tuple(found)}, but the model's "
            f"config.json makes it {tuple(expected)}; weights and configuration are not of the "
            "same model"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(
            f"{path} lacks the tensor {missing[0]!r}{more}; expected a checkpoint of the whole "
            "model"
        )


def _shapes(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}


def _reason(reports: list[str]) -> str | None:
    """The last error that the loader's report tells of."""
    errors = re.findall(r"^\w*Error: .*$", "\n".join(reports), re.MULTILINE)
    return errors[-1] if errors else None


@contextmanager
def _kept_reports() -> Iterator[list[str]]:
    """Keep the loader's reports and progress bar of this thread off the terminal."""
    reports: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread or record.funcName != "log_state_dict_report":
            return True
        reports.append(record.getMessage())
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    progress_bar = _progress.is_progress_bar_enabled()
    logger.addFilter(keep)
    _progress.disable_progress_bar()
    try:
        yield reports
    finally:
        if progress_bar:
            _progress.enable_progress_bar()
        logger.removeFilter(keep)
