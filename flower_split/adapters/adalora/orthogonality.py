"""AdaLoRA's orthogonal term, which `AdaLoraModel.forward` adds to every loss.

It is a mean over all singular vectors' tensors of the model (Zhang et al. 2023, arXiv:2303.10512,
equation 4, without the squares, as in PEFT). Over a cut each party computes that of its own.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn

from flower_split.errors import AdapterError


class OrthogonalTerm:
    """What `AdaLoraModel.forward` adds to a loss: the mean over all singular vectors' tensors of
    how far they are from orthogonal, times `orth_reg_weight`.

    Args:
        model: The client model's, as PEFT made it.
        slot: The layer at the trunk's place.
        modules: With an adapter, of the whole model; None for the silo's alone.
    """

    def __init__(self, model: AdaLoraModel, slot: nn.Module, modules: int | None = None) -> None:
        self._weight = float(trained_config(model).orth_reg_weight)
        self._model, self._slot, self._modules = model, slot, modules

    @cached_property
    def _sides(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What comes before the trunk's place, and after; looked for once the slot is there."""
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        side = 0
        for path, module in self._model.model.named_modules():
            side = 1 if module is self._slot else side
            for name, parameter in module.named_parameters(path, recurse=False):
                if _is_vectors(name, self._model.trainable_adapter_name):
                    sides[side].append(parameter)
        return sides

    @property
    def _count(self) -> int:
        """Tensors of the mean."""
        return sum(map(len, self._sides)) if self._modules is None else 2 * self._modules

    def before(self) -> Tensor | None:
        """Sum over what comes before the trunk's place; None where there is nothing."""
        return orthogonality(self._sides[0])

    def add_to(self, outputs: Any, before: Tensor | None, trunk: Tensor | None) -> None:
        """Add it to the loss of `outputs`, where there is one.

        Args:
            outputs: What the stock model returned.
            before: See `before`.
            trunk: The same of the trunk's part.
        """
        if not isinstance(getattr(outputs, "loss", None), Tensor):
            return
        so_far = before if trunk is None else trunk if before is None else before + trunk
        whole = orthogonality(self._sides[1], so_far)
        if whole is not None:
            outputs.loss += self._weight * (whole / self._count)


def orthogonality(vectors: Iterable[Tensor], so_far: Tensor | None = None) -> Tensor | None:
    """`so_far` and the sum of the Frobenius norms of P·Pᵀ - I, of each P in its shorter axis.

    Args:
        vectors: Left and right singular vectors by turns, (rank, inputs) and (outputs, rank).
        so_far: Of tensors before them.

    Returns:
        A scalar, in the order and precision of PEFT's own sum; None without any tensor.
    """
    for number, tensor in enumerate(vectors):
        covariance = tensor.T @ tensor if number % 2 else tensor @ tensor.T
        identity = torch.eye(*covariance.size(), out=torch.empty_like(covariance))
        norm = torch.norm(covariance - identity, p="fro")
        so_far = norm if so_far is None else so_far + norm
    return so_far


def find_adalora(model: nn.Module) -> AdaLoraModel | None:
    """PEFT's model of AdaLoRA in a model that it has wrapped, where an adapter is trained."""
    found = next((m for m in model.modules() if isinstance(m, AdaLoraModel)), None)
    return found if found is not None and hasattr(found, "trainable_adapter_name") else None


def adds_term(model: nn.Module) -> bool:
    """Whether a call of `model` goes through `AdaLoraModel.forward`.

    That of PEFT's class for no task, which masked language models have, does not: its losses have
    no term.
    """
    if isinstance(model, PeftModel):
        return type(model).forward is not PeftModel.forward
    return isinstance(model, AdaLoraModel)


def trained_config(model: AdaLoraModel) -> AdaLoraConfig:
    """PEFT's config of the adapter that `model` trains."""
    config = model.peft_config[model.trainable_adapter_name]
    if not isinstance(config, AdaLoraConfig):
        raise AdapterError(f"AdaLoRA's model has a {type(config).__name__}")
    return config


def _is_vectors(name: str, adapter: str) -> bool:
    return ("lora_A" in name or "lora_B" in name) and adapter in name
