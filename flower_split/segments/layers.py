"""Where a stock model keeps its decoder layers, and which layer a tensor's name belongs to."""

import re

from torch import nn
from transformers import PreTrainedModel

from flower_split.errors import UnsupportedFamilyError
from flower_split.segments.cuts import Cuts


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers of a stock model or of a segment of one.

    Raises:
        UnsupportedFamilyError: there is not exactly one list of `num_hidden_layers` modules.
    """
    count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outermost = [
        (path, module)
        for path, module in found
        if not any(path.startswith(f"{other}.") for other, _ in found)
    ]
    if len(outermost) != 1:
        raise UnsupportedFamilyError(
            f"a {model.config.model_type} model has {len(outermost)} lists of {count} layers, "
            "expected exactly one; it cannot be cut"
        )
    return outermost[0]


def layers_path(model: PreTrainedModel) -> str:
    """Path of the decoder layers, such as `model.layers` or `transformer.h`."""
    return find_layers(model)[0]


def layer_index(name: str, path: str) -> int | None:
    """Index of the decoder layer that the tensor `name` belongs to; None for a tensor at the ends.

    Prefixes in front of `path`, such as PEFT's, and checkpoints without the model's own prefix
    are understood.

    Args:
        name: Full name of a parameter, buffer or checkpoint tensor.
        path: `layers_path` of the model.
    """
    last = path.rpartition(".")[2]
    match = re.search(rf"(?:^|\.){re.escape(last)}\.(\d+)\.", name)
    return int(match[1]) if match else None


def held_by_trunk(name: str, path: str, cuts: Cuts) -> bool:
    """Whether the trunk, and not the silo, holds the tensor `name`; see `layer_index`."""
    index = layer_index(name, path)
    return index is not None and index in cuts.trunk_range
