"""Activations: what a training step keeps until its backward pass, found without computing it.

The uncut model with its adapter makes a forward pass on the meta device, where tensors have shapes
and no contents, and every tensor that autograd keeps is counted for the layer that made it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from flower_split.adapters import AdapterPlan, wrap
from flower_split.segments import find_layers

ENDS = -1
"""In place of a layer's index: embeddings, last norm, head and loss."""


def kept_activations(
    skeleton: PreTrainedModel, plan: AdapterPlan, *, rows: int, tokens: int, dtype: torch.dtype
) -> dict[int, int]:
    """Bytes that a microbatch keeps, by layer, and for `ENDS`.

    Args:
        skeleton: The uncut model on the meta device; left as it is.
        plan: Of its adapter.
        rows: Sequences.
        tokens: Of a sequence.
        dtype: Of the weights.
    """
    whole = copy.deepcopy(skeleton)
    _, layers = find_layers(whole)  # which are wrapped where they are
    nn.Module.to(whole, dtype)
    model = wrap(whole, plan)
    model.train()
    counter = _Counter({part.untyped_storage()._cdata for part in model.parameters()})
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")
    with counter.counting(layers), _Fused():
        model(input_ids=ids, labels=ids)
    return counter.bytes


class _Counter:
    def __init__(self, parameters: set[int]) -> None:
        self.bytes: dict[int, int] = {}
        self._seen: dict[int, Tensor] = {}
        self._parameters = parameters
        self._layer = ENDS

    @contextmanager
    def counting(self, layers: nn.ModuleList) -> Iterator[None]:
        """A block whose kept tensors are counted."""
        hooks = []
        for index, layer in enumerate(layers):
            hooks.append(layer.register_forward_pre_hook(self._enter(index)))
            hooks.append(layer.register_forward_hook(self._enter(ENDS)))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, index: int) -> Callable[..., None]:
        def enter(*_: object) -> None:
            self._layer = index

        return enter

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._parameters or key in self._seen:
            return tensor
        self._seen[key] = tensor  # held, so that no other storage gets its place
        self.bytes[self._layer] = self.bytes.get(self._layer, 0) + storage.nbytes()
        return tensor


class _Fused(TorchFunctionMode):
    """Attention as the fused kernels do it: on the meta device it would make all scores."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
            fused: Any = _Attention.apply
            return fused(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, _ = query.shape
        # As the kernels lay it out: the transposition that follows copies nothing.
        out = query.new_empty((rows, tokens, heads, value.shape[-1])).transpose(1, 2)
        context.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))
        return out

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("nothing is computed here")
