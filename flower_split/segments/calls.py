"""What a stock model was called with, before it makes masks and positions of its own from it."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from flower_split.errors import ModelError

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
    signature = inspect.signature(loop.forward)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = signature.bind(*args, **kwargs).arguments
        call = {**call.get("kwargs", {}), **call}
        for wanted in _OUTPUTS:
            if call.get(wanted):
                raise ModelError(f"{wanted} is not available: the trunk's layers are not here")
        on_call(call.get("attention_mask"), call.get("position_ids"))

    loop.register_forward_pre_hook(note, with_kwargs=True)
