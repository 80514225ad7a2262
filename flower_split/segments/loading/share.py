"""The silo's share of a checkpoint: which tensors it is made of, and nothing of the trunk's."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flower_split.config.tasks import CAUSAL, Task
from flower_split.errors import WeightsError
from flower_split.segments.layers import layer_index, layers_path
from flower_split.segments.loading.extents import Extent
from flower_split.segments.loading.load_plan import LoadPlan
from flower_split.segments.loading.skeleton import make_skeleton
from flower_split.segments.loading.source import Source
from flower_split.segments.splitting import punch_client

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SiloShare:
    """What `load_client_model` takes of a checkpoint at certain cuts."""

    source: Source
    layers: dict[int | None, tuple[Extent, ...]]
    """Tensors by their layer, None for those outside the layers; sorted by name."""


def silo_share(
    source: str | Path,
    *,
    bottom_layers: int,
    top_layers: int,
    revision: str = "",
    task: Task = CAUSAL,
) -> SiloShare:
    """The tensors of a checkpoint that a client model at these cuts consists of; none is read.

    A tensor that is no part of the stock model, such as an averaged copy or the optimizer's
    state, may be one of the trunk's under another name, and is left out.

    Args:
        source: As for `resolve_source`.
        bottom_layers: Layers the silo holds after the embeddings.
        top_layers: Layers the silo holds before the head.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        task: What the model is for.

    Raises:
        ModelError: as `load_client_model`, or the configuration names files of its own choice.
    """
    plan = LoadPlan(source, revision, bottom_layers, top_layers, "float32", "auto", task=task)
    if named := getattr(plan.config, "transformers_weights", None):
        raise WeightsError(
            f"config.json of {plan.source.name} names {named!r} as transformers_weights, which "
            "cannot be delivered: write the model with save_pretrained(folder) and give that"
        )
    path = layers_path(make_skeleton(plan.config))
    weights, wanted = plan.weight_files(), plan.wanted(plan.of_silo)
    used: set[str] = set()
    with weights.open(wanted) as tensors:
        probes = {name: _Probe(name, tensor, used) for name, tensor in tensors.items()}
        plan.make(dict(probes), punch_client, weights.path)
    if strangers := sorted(probes.keys() - used):
        logger.warning(
            "%d tensors of %s are no part of a %s model and stay out of the silos' share (%s)",
            len(strangers),
            plan.source.name,
            plan.config.model_type,
            _some(strangers),
        )
    layers: dict[int | None, list[Extent]] = {}
    for extent in sorted(weights.extents(wanted), key=lambda found: found.name):
        if extent.name in used:
            layers.setdefault(layer_index(extent.name, path), []).append(extent)
    return SiloShare(
        source=plan.source, layers={index: tuple(found) for index, found in layers.items()}
    )


class _Probe:
    """Zeros in a tensor's place, which take no memory and note that they were read.

    Only the stock loader itself knows which tensors it takes: it renames and fuses some.
    """

    def __init__(self, name: str, tensor: Any, used: set[str]) -> None:
        self._name = name
        self._tensor = tensor
        self._used = used

    def get_shape(self) -> list[int]:
        """The tensor's own shape."""
        return list(self._tensor.get_shape())

    def get_dtype(self) -> str:
        """What the zeros are, so that no other dtype is made of them."""
        return "F32"

    def __getitem__(self, index: Any) -> Tensor:
        self._used.add(self._name)
        return torch.zeros(()).expand(self.get_shape())[index]


def _some(names: Iterable[str]) -> str:
    first, *more = names
    return f"{first!r}{' and more' if more else ''}"
