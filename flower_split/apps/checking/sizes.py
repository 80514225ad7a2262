"""Sizes of a cut: parameters, bytes of memory and bytes on the wire, from the configuration alone.

What is estimated is what a party adds to its process: weights as they are stored, adapters with
gradients and two moments in float32, and what a training step keeps until its backward pass. The
interpreter and the libraries are not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from transformers import PreTrainedModel

from flower_split.adapters import AdapterPlan
from flower_split.apps.checking.activations import ENDS, kept_activations
from flower_split.compression.table import CODEC_TABLE
from flower_split.config.sections import SplitConfig
from flower_split.config.wire import HOPS
from flower_split.segments import Cuts, held_by_trunk, layer_index, layers_path

ADAPTER_COPIES = 4
"""An adapter's tensors in training: weights, gradients, two moments of AdamW; float32."""
QUANTIZED_BITS = {"nf4": 4.5, "int8": 8.1}
"""Bits of a quantized weight with its share of the scales."""
FLOAT = 4
LAYER_HIDDEN, LAYER_INNER = 20, 6
"""Floats a token that a layer keeps at most, in hidden sizes and widths of its feed-forward part;
for models whose own count cannot be had."""
HEAD_LOGITS = 3
"""Logits, their gradient and that of their logarithms, beside what the loss keeps of them."""


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
    skeleton: PreTrainedModel,
    plan: AdapterPlan,
    config: SplitConfig,
    cuts: Cuts | None = None,
    kept: Mapping[int, int] | None = None,
) -> CutSize:
    """What the cut of `config`, or another one, costs.

    Args:
        skeleton: The uncut model on the meta device.
        plan: Of the adapter of the uncut model.
        config: Batches, dtypes, codecs.
        cuts: None takes those of `config`.
        kept: As of `microbatch_bytes`, where it is known already.
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
    kept = microbatch_bytes(skeleton, plan, config) if kept is None else kept
    flights = in_flight(config)
    frozen = config.trunk.adapters == "frozen"
    in_trunk = flights * sum(kept.get(layer, 0) for layer in cuts.trunk_range)
    in_silo = flights * sum(kept.values()) - in_trunk
    # On the way back one layer's gradients exist at a time, as large as what it had kept.
    layer = max((size for index, size in kept.items() if index != ENDS), default=0)
    head = HEAD_LOGITS * FLOAT * _tokens(config) * int(text.vocab_size)
    return CutSize(
        cuts=cuts,
        silo=PartySize(
            parameters=counts[0],
            adapter=adapters[0],
            weights_bytes=round(bytes_[0]),
            adapter_bytes=adapters[0] * FLOAT * ADAPTER_COPIES,
            activation_bytes=in_silo + layer + head,
        ),
        trunk=PartySize(
            parameters=counts[1],
            adapter=0 if frozen else adapters[1],
            weights_bytes=round(bytes_[1]),
            adapter_bytes=0 if frozen else adapters[1] * FLOAT * ADAPTER_COPIES,
            activation_bytes=in_trunk + layer,
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


def microbatch_bytes(
    skeleton: PreTrainedModel, plan: AdapterPlan, config: SplitConfig
) -> dict[int, int]:
    """Bytes that a microbatch keeps until its backward pass, by layer, and for `ENDS`."""
    train = config.train
    try:
        return kept_activations(
            skeleton,
            plan,
            rows=train.batch_size,
            tokens=train.max_length,
            dtype=getattr(torch, config.model.dtype),
        )
    except Exception:  # stock code that looks into tensors finds nothing on the meta device
        text = skeleton.config.get_text_config(decoder=True)
        hidden = int(text.hidden_size)
        inner = int(getattr(text, "intermediate_size", 0) or 4 * hidden)
        layer = FLOAT * _tokens(config) * (LAYER_HIDDEN * hidden + LAYER_INNER * inner)
        return dict.fromkeys(range(int(text.num_hidden_layers)), layer)


def in_flight(config: SplitConfig) -> int:
    """Microbatches whose activations a silo and its trunk keep at once, at most."""
    accumulation = config.train.accumulation
    return max(1, min(accumulation, config.train.in_flight or accumulation))


def _tokens(config: SplitConfig) -> int:
    return config.train.batch_size * config.train.max_length
