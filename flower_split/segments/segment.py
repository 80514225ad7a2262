"""A segment: the stock model run whole, of which one stretch of layers computes."""

import inspect
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from flower_split.devices import as_inner
from flower_split.errors import ModelError
from flower_split.segments.cuts import Cuts
from flower_split.segments.layers import find_layers
from flower_split.segments.randomness import LayerDraws, random_state, set_random_state


def without_unknown(base: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Those of `arguments` that a base model's forward pass names: encoders know no caches.

    A pass that names nothing hands on whatever it is given, as BART's decoder of a causal model.
    """
    parameters = inspect.signature(base.forward).parameters
    named = {
        name
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    return {name: value for name, value in arguments.items() if name in named or not named}


class Segment(nn.Module):
    """The stock model with stand-ins for what other parties hold.

    The stock model runs whole, so that masks, positions and rotary embeddings are the stock code's
    own. What it does to hidden states outside the segment is thrown away: they are put in
    before the layer `enters` and taken out after the layer `leaves`.

    Calls from several threads do not mix. Gradient checkpointing recomputes a layer with the
    hidden states that were put in.

    Args:
        model: The stock `…ForCausalLM` with stand-ins.
        cuts: Which layers the parties hold.
        fingerprint: Of the uncut model.
        enters: Index of the layer that is given the caller's hidden states; None where the stock
            model's own are right.
        leaves: Index of the layer whose output is the answer; None where it is the stock model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cuts: Cuts,
        fingerprint: str,
        *,
        enters: int | None = None,
        leaves: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.cuts = cuts
        self.fingerprint = fingerprint
        _, layers = find_layers(model)
        if enters is not None:
            layers[enters].register_forward_pre_hook(self._inject, with_kwargs=True)
        if leaves is not None:
            layers[leaves].register_forward_hook(self._capture)

    @property
    def config(self) -> PreTrainedConfig:
        """The uncut model's configuration."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of weights and activations."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    def _through(
        self, incoming: Tensor | None = None, draws: LayerDraws | None = None, **call: Any
    ) -> Tensor:
        """Hidden states (B, T, H) after the layer `leaves`, of the base model called so.

        Raises:
            ModelError: the stock model did not run that layer.
        """
        current = _Pass(self, incoming, draws)
        _run(current, self.model.base_model, call)
        if current.outgoing is None:
            raise ModelError(
                f"the stock {self.config.model_type} model returned without running the layers "
                f"{self.cuts.trunk_range.start} … {self.cuts.trunk_range.stop - 1} of the trunk"
            )
        return current.outgoing

    def _whole(self, incoming: Tensor, **call: Any) -> Any:
        """What the model with its head returns, called so."""
        current = _Pass(self, incoming)
        output = _run(current, self.model, call)
        if not current.entered:
            raise ModelError(
                f"the stock {self.config.model_type} model returned without running its layers"
            )
        return output

    def _inject(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        current = self._current()
        if current is None:
            return None
        current.entered = True
        if current.draws is not None and current.draws.before is not None:
            set_random_state(self.device, current.draws.before)
        incoming = None if current.incoming is None else as_inner(current.incoming)
        if args:
            return (incoming, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": incoming}

    def _capture(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._current()
        if current is not None:
            current.outgoing = output[0] if isinstance(output, tuple | list) else output
            if current.draws is not None:
                current.draws.after = random_state(self.device)

    def _current(self) -> "_Pass | None":
        current = _PASS.get()
        return current if current is not None and current.segment is self else None


class _Pass:
    """One forward pass of one segment."""

    def __init__(
        self, segment: Segment, incoming: Tensor | None, draws: LayerDraws | None = None
    ) -> None:
        self.segment = segment
        self.incoming = incoming
        self.draws = draws
        self.outgoing: Tensor | None = None
        self.entered = False


# Every thread has its own value, and a pass inside a pass puts the outer one back.
_PASS: ContextVar[_Pass | None] = ContextVar("_PASS", default=None)


def _run(current: _Pass, stock: nn.Module, call: dict[str, Any]) -> Any:
    token = _PASS.set(current)
    try:
        return stock(**call)
    finally:
        _PASS.reset(token)
