"""The trunk's adapters: one set of trunk weights, and a LoRA adapter for every open session."""

import warnings
from collections.abc import Mapping

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flower_split.adapters.plan import AdapterPlan
from flower_split.adapters.state import adapter_parameters, load_state, read_state
from flower_split.adapters.wrapping import wrap
from flower_split.errors import AdapterError
from flower_split.segments import Trunk

MASTER = "master"


class TrunkAdapters:
    """Named adapters on one trunk, one of them active at a time.

    The adapter `master` is always there: what a session starts from when nothing else is given,
    and what the sessions of a `shared` trunk have in common.

    Args:
        trunk: Its model is wrapped in place and its weights are frozen.
        plan: The whole model's adapter plan.

    Raises:
        AdapterError: the plan has no module among the trunk's layers.
    """

    def __init__(self, trunk: Trunk, plan: AdapterPlan) -> None:
        wrapped = wrap(trunk.model, plan, MASTER)
        if not isinstance(wrapped, PeftModel):
            raise AdapterError(
                "none of the trunk's layers has a module that lora.target-modules names; "
                "set trunk.adapters to 'frozen', or name a module of the trunk"
            )
        self._trunk = trunk
        self._model = wrapped
        self._layers = [m for m in wrapped.modules() if isinstance(m, LoraLayer)]
        self._active = ""
        self.activate(MASTER)

    def add(self, name: str, state: Mapping[str, Tensor] | None = None) -> None:
        """Make the adapter `name` with the values of `state`, or else of the master's.

        Raises:
            AdapterError: `state` does not fit the trunk; no adapter is made then.
        """
        state = self.state(MASTER) if state is None else state
        self._active = ""  # PEFT activates an adapter of its own choice as it adds one
        with torch.random.fork_rng(devices=[]):
            self._model.add_adapter(name, self._model.peft_config[MASTER])
        # New dropout modules train, whatever the trunk does.
        self._trunk.train(self._trunk.training)
        try:
            load_state(self._model, state, name)
        except AdapterError:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Delete the adapter `name`."""
        self.activate(MASTER)
        self._active = ""  # and as it deletes one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model.delete_adapter(name)

    def activate(self, name: str) -> None:
        """Compute with the adapter `name` from now on, with gradients for its tensors only."""
        if name != self._active:
            for layer in self._layers:
                layer.set_adapter(name)
            self._active = name

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The tensors of the adapter `name`, in model order."""
        return [parameter for _, parameter in adapter_parameters(self._model, name)]

    def named_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The tensors of the adapter `name` by their names in the uncut model, in model order."""
        return dict(adapter_parameters(self._model, name))

    def state(self, name: str) -> dict[str, Tensor]:
        """A float32 CPU copy of the adapter `name`, named as in the uncut model."""
        return read_state(self._model, name)

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite the adapter `name`; see `flower_split.adapters.load_state`."""
        load_state(self._model, state, name)
