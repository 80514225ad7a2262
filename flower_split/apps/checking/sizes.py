"""Sizes of a cut: parameters, bytes of memory and bytes on the wire, from the configuration alone.

What is estimated is what a party adds to its process: weights as they are stored, adapters with
gradients and two moments in float32, and what a training step keeps until its backward pass. The
interpreter and the libraries are not in it.
"""

from dataclasses import dataclass
from math import prod

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from flower_split.adapters import AdapterPlan
from flower_split.compression.table import CODEC_TABLE
from flower_split.config.sections import SplitConfig
from flower_split.config.wire import HOPS
from flower_split.segments import Cuts, held_by_trunk, layer_index, layers_path

ADAPTER_COPIES = 4
"""An adapter's tensors in training: weights, gradients, two moments of AdamW; float32."""
QUANTIZED_BITS = {"nf4": 4.5, "int8": 8.1}
"""Bits of a quantized weight with its share of the scales."""
FLOAT = 4
LAYER_HIDDEN, LAYER_INNER, HEAD_LOGITS = 14, 5, 3
"""Floats a token that a layer keeps, in hidden sizes and widths of its feed-forward part, and that
the head takes, in vocabularies."""


@dataclass(frozen=True, kw_only=True)
class PartySize:
    """What one party holds, in parameters and bytes."""

    parameters: int
    """Of the frozen model."""
    adapter: int
    """Parameters that are trained."""
    weights_bytes: int
    adapter_bytes: int
    """With gradients and moments."""
    activation_bytes: int
    """What one microbatch keeps until its backward pass, hidden states and logits among it."""

    @property
    def bytes(self) -> int:
        """All of it at once."""
        return self.weights_bytes + self.adapter_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True)
class CutSize:
    """What a cut costs each party and the wire."""

    cuts: Cuts
    silo: PartySize
    trunk: PartySize
    head_bytes: int
    """Of `silo`: logits, their gradient and what the loss keeps of them."""
    step_bytes: int
    """Payload of one optimizer step on the wire, both ways, all microbatches."""

    @property
    def parameters(self) -> int:
        """Of the uncut model."""
        return self.silo.parameters + self.trunk.parameters

    @property
    def share(self) -> float:
        """Part of the model's parameters that a silo holds, 0 to 1."""
        return self.silo.parameters / self.parameters


def cut_size(
    skeleton: PreTrainedModel, plan: AdapterPlan, config: SplitConfig, cuts: Cuts | None = None
) -> CutSize:
    """What the cut of `config`, or another one, costs.

    Args:
        skeleton: The uncut model on the meta device.
        plan: Of the adapter of the uncut model.
        config: Batches, dtypes, codecs.
        cuts: None takes those of `config`.
    """
    path = layers_path(skeleton)
    text = skeleton.config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    split = config.split
    cuts = cuts or Cuts(
        bottom_layers=split.bottom_layers, top_layers=split.top_layers, num_layers=layers
    )
    counts, bytes_, linear = [0, 0], [0.0, 0.0], _quantized(skeleton, path, config)
    for name, parameter in skeleton.named_parameters():
        party = int(held_by_trunk(name, path, cuts))
        counts[party] += parameter.numel()
        bytes_[party] += parameter.numel() * _width(name in linear, party, config)
    adapters = [0, 0]
    for name, shape in plan.shapes:
        index = layer_index(name, path)
        trunk = index is not None and index in cuts.trunk_range
        adapters[int(trunk)] += prod(shape)
    tokens = config.train.batch_size * config.train.max_length
    in_trunk = len(cuts.trunk_range)
    frozen = config.trunk.adapters == "frozen"
    layer = _layer_bytes(text, tokens)
    head = _head_bytes(text, tokens)
    return CutSize(
        cuts=cuts,
        silo=PartySize(
            parameters=counts[0],
            adapter=adapters[0],
            weights_bytes=round(bytes_[0]),
            adapter_bytes=adapters[0] * FLOAT * ADAPTER_COPIES,
            activation_bytes=(layers - in_trunk) * layer + head,
        ),
        trunk=PartySize(
            parameters=counts[1],
            adapter=0 if frozen else adapters[1],
            weights_bytes=round(bytes_[1]),
            adapter_bytes=0 if frozen else adapters[1] * FLOAT * ADAPTER_COPIES,
            activation_bytes=in_trunk * layer,
        ),
        head_bytes=head,
        step_bytes=step_bytes(config, int(text.hidden_size)),
    )


def step_bytes(config: SplitConfig, hidden: int, codec: str = "") -> int:
    """Payload of one optimizer step, both ways; with one codec for all hops where it is named."""
    train = config.train
    shape = (train.batch_size, train.max_length, hidden)
    names = [codec or getattr(config.wire, hop) for hop in HOPS]
    return train.accumulation * sum(CODEC_TABLE.named(name).encoded_bytes(shape) for name in names)


def _width(quantized: bool, party: int, config: SplitConfig) -> float:
    """Bytes of a weight."""
    if quantized:
        kind = config.model.quantization.partition("-")[0].replace("torchao", "int8")
        return QUANTIZED_BITS[kind] / 8
    name = (config.trunk.dtype if party else "") or config.model.dtype
    return float(getattr(torch, name).itemsize)


def _quantized(skeleton: PreTrainedModel, path: str, config: SplitConfig) -> set[str]:
    """Names of the weights that are quantized: those of the layers' linear modules."""
    if config.model.quantization == "none":
        return set()
    return {
        f"{name}.weight"
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and layer_index(f"{name}.", path) is not None
    }


def _layer_bytes(text: PreTrainedConfig, tokens: int) -> int:
    """What a layer with LoRA on all its linear modules keeps of a microbatch, in float32."""
    hidden = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", 0) or getattr(text, "n_inner", 0) or 4 * hidden)
    return FLOAT * tokens * (LAYER_HIDDEN * hidden + LAYER_INNER * inner)


def _head_bytes(text: PreTrainedConfig, tokens: int) -> int:
    """What the head's logits and the loss over them take at once."""
    return FLOAT * tokens * HEAD_LOGITS * int(text.vocab_size)
