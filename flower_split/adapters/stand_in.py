"""Stand-ins for the trunk's layers that PEFT takes for layers with adapters.

What PEFT saves and loads it finds by visiting layers of its own kind. So that it asks the
stand-ins, too, they are of that kind. They have no tensors: what is saved under their names comes
from the trunk, and what is loaded goes there.
"""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn, Self

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from flower_split.errors import AdapterError, ModelError
from flower_split.segments import PassThrough

_UNMERGEABLE = (
    "a client model's adapter cannot be merged or unloaded: the trunk's layers are not here. "
    "Export the whole adapter, and merge that: flower-split export --merge. Without its adapter "
    "the model computes under disable_adapter()"
)

_WEIGHTLESS = "the weights of the trunk's layers are not in a client model"

_TAKEN_OVER = (
    "accelerate cannot take over the modules of an attached client model, as cpu_offload, "
    "disk_offload and dispatch_model with several devices do: call them before attach_trunk"
)


def refuse_merging(model: nn.Module) -> None:
    """Have PEFT refuse to merge or unload the adapters of a client model before it changes any.

    Args:
        model: The client model as PEFT has wrapped it, or not wrapped yet.
    """
    for tuner in model.modules():
        if isinstance(tuner, BaseTuner):
            tuner.merge_adapter = tuner._unload_and_optionally_merge = _refuse  # type: ignore[method-assign]


def tell_of_part(model: nn.Module, besides: Tensor, at_trunk: Callable[[], int]) -> None:
    """Have PEFT's `print_trainable_parameters` say that a client model is a part.

    Args:
        model: The client model as PEFT has wrapped it; another is left as it is.
        besides: A parameter of it that is no weight.
        at_trunk: Counts the trained parameters at the trunk that are not in `model`.
    """
    if isinstance(model, PeftModel):
        told = partial(_print_part, weakref.ref(model), besides, at_trunk)
        model.print_trainable_parameters = told  # type: ignore[method-assign]


def _print_part(
    model: "weakref.ref[PeftModel]", besides: Tensor, at_trunk: Callable[[], int]
) -> None:
    held = model()
    if held is None:
        return
    trained, parameters = held.get_nb_trainable_parameters()
    trained -= besides.numel() if besides.requires_grad else 0
    parameters -= besides.numel()
    print(
        f"trainable params: {trained:,d} || params of the silo's part: {parameters:,d} || "
        f"trainable%: {100 * trained / parameters:.4f} || trainable params at the trunk besides: "
        f"{at_trunk():,d}"
    )


def _refuse(*args: Any, **settings: Any) -> NoReturn:
    raise AdapterError(_UNMERGEABLE)


class AdapterStandIn(PassThrough, BaseTunerLayer):
    """A stand-in for a trunk layer whose modules have adapters.

    Args:
        layer: What stands there now.
    """

    def __init__(self, layer: PassThrough) -> None:
        super().__init__(layer)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but for the one by which accelerate takes a module's call over."""
        if name == "_old_forward":
            raise ModelError(_TAKEN_OVER)
        super().__setattr__(name, value)

    def lay_out(self, modules: Iterable[str]) -> Self:
        """Have PEFT look for tensors under the names of `modules`, which the stock layer has."""
        for name in dict.fromkeys(module.partition(".")[0] for module in modules):
            if name not in self._modules:
                self.add_module(name, _Place())
        return self

    @property
    def weight(self) -> NoReturn:
        """None: PEFT would look for that of the layer beneath, which is the stand-in itself."""
        raise AttributeError(_WEIGHTLESS)

    @property
    def bias(self) -> NoReturn:
        """None, as there is no weight."""
        raise AttributeError(_WEIGHTLESS)

    @property
    def cast_input_dtype_enabled(self) -> NoReturn:
        """Refused: the trunk's adapters cast their input."""
        raise AdapterError(
            "disable_input_dtype_casting cannot be asked of a client model: the trunk's adapters "
            "cast their input, and are not here to be told otherwise. Leave it out, and train in "
            "one dtype or under autocast"
        )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Refused: the adapters of the trunk's layers are not here to be converted."""
        raise AdapterError(
            "convert_to_lora cannot be asked of a client model, which has a part of the adapter: "
            "export the whole one (flower-split export), and convert that on the whole model"
        )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the trunk's weights are not here to be merged into."""
        raise AdapterError(_UNMERGEABLE)

    def unload_and_optionally_merge_module(self, **settings: Any) -> nn.Module:
        """Refused: what PEFT would hand back is no model that computes."""
        raise AdapterError(_UNMERGEABLE)

    def unmerge(self) -> None:
        """Nothing is ever merged here."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing: the remote trunk saves for all stand-ins."""


class _Place(nn.Module):
    """A module's name, and nothing else. What is loaded under it the stand-in has set aside."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        return
