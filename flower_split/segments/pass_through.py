"""Modules that stand in a segment for what another party holds."""

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flower_split.errors import ModelError
from flower_split.segments.cuts import Cuts

_PLAIN = (str, int, float, bool, type(None))


class PassThrough(nn.Module):
    """Stands for a layer of another party: returns the hidden states it is given.

    Args:
        layer: The stock layer, or another stand-in, whose plain attributes (such as
            `attention_type`) the stock model's loop may read.
        returns_tuple: Whether the family's layers return a tuple; None takes it from `layer`.
    """

    returns_tuple: bool

    def __init__(self, layer: nn.Module, *, returns_tuple: bool | None = None) -> None:
        super().__init__()
        self._given: dict[str, Tensor] = {}
        for name, value in vars(layer).items():
            if not name.startswith("_") and name != "training" and isinstance(value, _PLAIN):
                setattr(self, name, value)
        if returns_tuple is not None:
            self.returns_tuple = returns_tuple
        self.train(layer.training)

    def take_given(self) -> dict[str, Tensor]:
        """The tensors that were loaded under this layer's name since the last call, by their names
        in the layer: they are the other party's."""
        given, self._given = self._given, {}
        return given

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Set aside what is for the layer of the other party, for whoever can give it to them."""
        own = {name for name, _ in self.named_parameters()}
        for name, tensor in state_dict.items():
            inner = name.removeprefix(prefix)
            if name.startswith(prefix) and inner not in own:
                self._given[inner] = tensor.detach().clone()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The hidden states (B, T, H), in the shape in which the family's layers return them."""
        return (hidden_states, None) if self.returns_tuple else hidden_states


class TrunkSlot(PassThrough):
    """The place in a client model where `attach_trunk` puts the remote trunk.

    Args:
        layer: The stock layer at index `cuts.bottom_layers`.
        returns_tuple: Whether the family's layers return a tuple.
        cuts: Where the model was cut.
        fingerprint: Of the uncut model.
    """

    def __init__(
        self, layer: nn.Module, *, returns_tuple: bool, cuts: Cuts, fingerprint: str
    ) -> None:
        super().__init__(layer, returns_tuple=returns_tuple)
        self.cuts = cuts
        self.fingerprint = fingerprint
        self.loaded_adapter = ""
        """SHA-256 of the trained adapter that the client model has loaded; empty for none."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Refused: without the trunk the answer would be wrong."""
        raise ModelError("this model has no trunk yet: call attach_trunk(model, transport) first")


class Stub(nn.Module):
    """Stands for an embedding, norm, projection or head whose answer is thrown away.

    It only has to let the stock code go on: it returns the hidden states it is given, (B, T, H),
    or else a zero that broadcasts against anything.

    Args:
        dtype: Of the model; it and the device follow `.to()`.
    """

    like: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        # On the CPU also where the model is built on the meta device.
        zero = torch.zeros((), dtype=dtype, device="cpu")
        self.register_buffer("like", zero, persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first floating-point argument with three axes, or a zero without axes."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        for value in tensors:
            if value.is_floating_point() and value.dim() == 3:
                return value
        return self.like.new_zeros((), device=tensors[0].device if tensors else None)


OnCall = Callable[[Any, Any], None]

_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")


def watch_calls(model: nn.Module, layers: nn.Module, on_call: OnCall) -> None:
    """Tell `on_call` the `attention_mask` and `position_ids` of every call of the layers' loop.

    A call that asks for what only the trunk has then raises a `ModelError`.

    Args:
        model: A client model, wrapped by PEFT or not.
        layers: Its list of decoder layers.
        on_call: Called with both before the stock code runs; None for what was not given.

    Raises:
        ModelError: no module of `model` owns `layers`.
    """
    loop = next((m for m in model.modules() if any(c is layers for c in m.children())), None)
    if loop is None:
        raise ModelError(f"the list of layers has no owner in this {type(model).__name__}")
    loop.register_forward_pre_hook(_Watch(loop, on_call), with_kwargs=True)


class _Watch:
    """The hook of `watch_calls`; a copy of the loop's module, such as `Halves` makes, shares it."""

    def __init__(self, loop: nn.Module, on_call: OnCall) -> None:
        self._signature = inspect.signature(loop.forward)
        self._on_call = on_call

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._signature.bind(*args, **kwargs).arguments
        call = {**call.get("kwargs", {}), **call}
        for wanted in _OUTPUTS:
            if call.get(wanted):
                raise ModelError(f"{wanted} is not available: the trunk's layers are not here")
        self._on_call(call.get("attention_mask"), call.get("position_ids"))

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Watch":
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self)


def refuse_copy(holder: object, *_: Any) -> NoReturn:
    """Stands for `__deepcopy__` and `__reduce_ex__` of what belongs to one trunk.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        "a client model with a trunk attached cannot be copied or pickled as a whole, as by "
        "copy.deepcopy, pickle and torch.save: it belongs to one open session. Copy or save it "
        "before attach_trunk. Of an attached one, save its tensors (state_dict), and for a second "
        "model, such as a reference, call load_client_model or split_model again, load_state_dict, "
        "and attach it to a session of its own"
    )
