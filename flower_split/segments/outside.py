"""The modules of a stock model outside its layers: embeddings, projections, norm and head."""

from torch import nn
from transformers import PreTrainedModel

from flower_split.errors import UnsupportedFamilyError


def outside_modules(
    model: PreTrainedModel, layers: nn.ModuleList
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Owner, name and module of everything outside `layers` that a checkpoint has tensors of.

    Raises:
        UnsupportedFamilyError: a tensor outside the layers belongs to no module of its own, so
            that it cannot be given to one party.
    """
    found: list[tuple[nn.Module, str, nn.Module]] = []
    owner: nn.Module = model
    while True:
        if loose := _own_tensors(owner):
            raise UnsupportedFamilyError(
                f"{type(owner).__name__} holds the tensor {loose[0]!r} beside its layers, which "
                "belongs to no module of its own; the model cannot be cut"
            )
        inner: nn.Module | None = None
        for name, child in owner.named_children():
            if any(module is layers for module in child.modules()):
                inner = child
            elif any(_own_tensors(module) for module in child.modules()):
                found.append((owner, name, child))
        if inner is None or inner is layers:
            return found
        owner = inner


def head_of(model: PreTrainedModel) -> nn.Module | None:
    """The output embeddings of a stock model, or None where it has none."""
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Module) else None


def _own_tensors(module: nn.Module) -> list[str]:
    """Names of the tensors that a checkpoint has of `module` itself."""
    persistent = [
        name
        for name, _ in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    ]
    return [*(name for name, _ in module.named_parameters(recurse=False)), *persistent]
