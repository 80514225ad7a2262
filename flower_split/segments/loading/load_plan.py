"""The load plan of a party's segment, and loading by it: nothing else of the model is read."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from flower_split.config.checks import one_of
from flower_split.config.sections import ATTENTION, DTYPES
from flower_split.config.tasks import CAUSAL, Task
from flower_split.devices import giving_back_freed_memory, resolve_device
from flower_split.errors import ModelError, WeightsError
from flower_split.segments.cuts import Cuts
from flower_split.segments.families import Family
from flower_split.segments.fingerprint import fingerprint
from flower_split.segments.layers import find_layers, layer_index, layers_path
from flower_split.segments.loading.quantization import quantization_config
from flower_split.segments.loading.skeleton import make_skeleton, read_config
from flower_split.segments.loading.source import resolve_source
from flower_split.segments.loading.stock_loader import load_stock
from flower_split.segments.loading.weight_files import WeightFiles
from flower_split.segments.outside import head_of, outside_modules
from flower_split.segments.pass_through import Stub
from flower_split.segments.proving import family_of
from flower_split.segments.refusals import quantization_of, refuse_config
from flower_split.segments.splitting import note_cut, punch_client, punch_trunk
from flower_split.segments.stock_classes import stock_class
from flower_split.segments.trunk import Trunk

Punch = Callable[[PreTrainedModel, Cuts, Family], None]
Held = Callable[[int | None], bool]
"""Whether a party holds a layer; None stands for what is outside the layers."""


def load_client_model(
    source: str | Path,
    *,
    bottom_layers: int,
    top_layers: int,
    revision: str = "",
    dtype: str = "float32",
    attention: str = "auto",
    device: str = "cpu",
    quantization: str = "none",
    task: Task = CAUSAL,
) -> PreTrainedModel:
    """The client model of a checkpoint, in evaluation mode, as `split_model` makes it.

    The trunk's tensors are not read.

    Args:
        source: As for `resolve_source`.
        bottom_layers: Layers the silo holds after the embeddings.
        top_layers: Layers the silo holds before the head.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        dtype: Of weights and activations: one of `flower_split.config` `DTYPES`.
        attention: Attention implementation: one of `flower_split.config` `ATTENTION`.
        device: As for `flower_split.devices.resolve_device`; each tensor goes there as it is read.
        quantization: Of the layers' linear modules: one of `flower_split.config` `QUANTIZATIONS`.
        task: What the model is for. What its head lacks in the checkpoint is drawn at random,
            alike at every party.

    Raises:
        WeightsError: there is no such checkpoint, or it lacks what the silo needs.
        CutError: the cuts do not fit the model; no weight has been read.
        UnsupportedFamilyError: the family is not known to be exact when it is cut.
        ModelError: its configuration rules out cutting it, or it has no such attention.
        ConfigError: `dtype` or `attention` is none of those known, or there is no such device.
    """
    plan = LoadPlan(
        source, revision, bottom_layers, top_layers, dtype, attention, device, quantization, task
    )
    model = plan.load(punch_client, plan.of_silo)
    note_cut(model, plan.cuts)
    if (found := _generation_config(plan.source.folder)) is not None and task == CAUSAL:
        model.generation_config = found
    return model


def load_trunk(
    source: str | Path,
    *,
    bottom_layers: int,
    top_layers: int,
    revision: str = "",
    dtype: str = "float32",
    attention: str = "auto",
    device: str = "cpu",
    quantization: str = "none",
    task: Task = CAUSAL,
) -> Trunk:
    """The trunk of a checkpoint, in evaluation mode, as `split_model` makes it.

    Only the tensors of its layers are read. Arguments and errors are those of
    `load_client_model`.
    """
    plan = LoadPlan(
        source, revision, bottom_layers, top_layers, dtype, attention, device, quantization, task
    )
    model = plan.load(punch_trunk, lambda index: not plan.of_silo(index))
    # Not of `plan.config`: some families settle open values of it when the model is made.
    return Trunk(model, plan.cuts, fingerprint(model.config)).eval()


class LoadPlan:
    """What is to be loaded of a model, checked before any weight is read.

    Arguments and errors are those of `load_client_model`.
    """

    def __init__(
        self,
        source: str | Path,
        revision: str,
        bottom_layers: int,
        top_layers: int,
        dtype: str,
        attention: str,
        device: str = "cpu",
        quantization: str = "none",
        task: Task = CAUSAL,
    ) -> None:
        one_of("dtype", dtype, DTYPES)
        one_of("attention", attention, ATTENTION)
        self.device = resolve_device(device)
        self.source = resolve_source(source, revision)
        self.task = task
        self.config = read_config(self.source, task)
        self.family = family_of(self.config)
        refuse_config(self.config)
        if method := quantization_of(self.config):
            raise ModelError(
                f"the weights of {self.source.name} are quantized already, by {method}: give the "
                "checkpoint that they were made of, and set model.quantization"
            )
        self.cuts = Cuts(
            bottom_layers=bottom_layers,
            top_layers=top_layers,
            num_layers=int(self.config.get_text_config(decoder=True).num_hidden_layers),
        )
        has_sdpa = getattr(stock_class(self.config), "_supports_sdpa", True)
        if attention == "auto":
            attention = "sdpa" if has_sdpa else "eager"
        if attention == "sdpa" and not has_sdpa:
            raise ModelError(
                f"transformers has no sdpa attention for {self.config.model_type}; set "
                "model.attention to 'auto' or 'eager'"
            )
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.attention = attention
        self.quantization = quantization_config(quantization, self.dtype)

    def of_silo(self, index: int | None) -> bool:
        """Whether a layer is the silo's; None stands for what is outside the layers."""
        return index is None or index not in self.cuts.trunk_range

    def wanted(self, held: Held) -> Callable[[str], bool]:
        """Says of a tensor's name whether it belongs to a layer that is `held`."""
        path = layers_path(make_skeleton(self.config))

        def wanted(name: str) -> bool:
            index = layer_index(name, path)
            # Some checkpoints have layers beyond the model's, which only pretraining uses.
            return held(index) and (index is None or index < self.cuts.num_layers)

        return wanted

    def weight_files(self) -> WeightFiles:
        """Where the weights are.

        Raises:
            WeightsError: there are none that can be read.
        """
        return WeightFiles(self.source, getattr(self.config, "transformers_weights", None) or "")

    def load(self, punch: Punch, held: Held) -> PreTrainedModel:
        """The stock model after `punch`, with the tensors of the layers that are `held`."""
        weights = self.weight_files()
        with weights.open(self.wanted(held)) as tensors:
            model = self.make(tensors, punch, weights.path)
        for module in model.modules():
            if isinstance(module, Stub):
                # The stock loader leaves buffers that it does not know uninitialised.
                module.like.zero_()
        return model

    def make(self, tensors: dict[str, Any], punch: Punch, path: Path) -> PreTrainedModel:
        """The stock model after `punch`, of `tensors` that come from `path`; see `load_stock`."""
        with nullcontext() if self.quantization is None else giving_back_freed_memory():
            return load_stock(
                stock_class(self.config),
                self.config,
                tensors,
                punch=lambda model: punch(model, self.cuts, self.family),
                dtype=self.dtype,
                device=self.device,
                attention=self.attention,
                name=self.source.name,
                path=path,
                quantization=self.quantization,
                head=self._head,
            )

    def _head(self) -> tuple[str, ...]:
        """Names of the modules that a checkpoint of another task may lack."""
        if self.task == CAUSAL:
            return ()
        skeleton = make_skeleton(self.config)
        outside = outside_modules(skeleton, find_layers(skeleton)[1])
        paths = {id(module): path for path, module in skeleton.named_modules()}
        head = head_of(skeleton)
        after = (m for _, name, m in outside if m is head or name in self.family.after)
        return tuple(paths[id(module)] for module in after)


def _generation_config(folder: Path) -> GenerationConfig | None:
    if not (folder / GENERATION_CONFIG_NAME).is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as exc:
        raise WeightsError(f"{folder / GENERATION_CONFIG_NAME} cannot be read: {exc}") from exc
