"""A small twin of a model on disk: few narrow layers, no value at its neutral start."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flower_split.config.tasks import CLASSIFYING, Task
from flower_split.errors import ModelError
from flower_split.segments.randomness import numbers_aside
from flower_split.segments.stock_classes import auto_class, stock_class, task_of


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A checkpoint of a small model."""

    folder: Path
    config: PreTrainedConfig

    def whole(self, attention: str) -> PreTrainedModel:
        """The uncut model, in training mode; without dropout, by its configuration."""
        model = auto_class(self.config).from_pretrained(
            self.folder,
            attn_implementation=attention,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
        align(model)
        return cast(PreTrainedModel, model.train())

    @property
    def task(self) -> Task:
        """What it is for."""
        name = task_of(self.config)
        labels = [*(self.config.id2label or {}).values()] if name in CLASSIFYING else ()
        return Task(name=name, labels=tuple(labels))

    @property
    def attentions(self) -> list[str]:
        """The attention kernels of the stock code that run on a CPU."""
        sdpa = getattr(stock_class(self.config), "_supports_sdpa", False)
        return ["sdpa", "eager"] if sdpa else ["eager"]


@contextmanager
def make_twin(config: PreTrainedConfig, seed: int = 0) -> Iterator[Twin]:
    """Random weights of `config` in a temporary folder.

    Raises:
        ModelError: transformers cannot make such a model.
    """
    auto = auto_class(config)
    with tempfile.TemporaryDirectory(prefix="flower-split-twin-") as folder:
        try:
            with numbers_aside():
                torch.manual_seed(seed)
                model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
                _stir(model)
            model.save_pretrained(folder)
            model.config.architectures = config.architectures or model.config.architectures
        except Exception as error:  # whatever the stock code raises
            raise ModelError(
                f"no small {config.model_type} model can be made: {type(error).__name__}: {error}"
            ) from error
        yield Twin(folder=Path(folder), config=model.config)


def align(model: nn.Module) -> None:
    """Put every tensor where torch allocates.

    Read from a file it may begin anywhere, and kernels add up in an order that depends on it.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.detach().clone()


def _stir(model: PreTrainedModel) -> None:
    """Move every value from where it starts, which may be 0 or 1."""
    saved = model.state_dict()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in saved and tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))
