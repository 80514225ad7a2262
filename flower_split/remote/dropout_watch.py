"""Whether the client model drops out as it did when the session began, for the trunk to do alike.

Trainers of preferences and rewards set the rates of all dropout modules to zero before they train.
"""

import weakref
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from flower_split.adapters.plan import ADAPTER
from flower_split.errors import ModelError


class DropoutWatch:
    """Compares the rates of dropout modules with those that the session began with.

    Args:
        model: The client model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = weakref.ref(model)
        self._rates: dict[str, float] = {}
        self._note()

    def is_on(self) -> bool:
        """Whether the trunk must drop out in a pass in training mode.

        Raises:
            ModelError: the silo's modules do so otherwise than they did, and not all of them.
        """
        model = self._model()
        if model is None:
            return True
        self._note()
        held = {name: module for name, module in _dropouts(model) if name in self._rates}
        changed = sorted(
            name for name, m in held.items() if m.p != self._rates[name] or not m.training
        )
        if not changed:
            return True
        on = [name for name, module in held.items() if module.p]
        on += [name for name, module in model.named_modules() if _drops_by_setting(module)]
        if on:
            raise ModelError(
                f"the dropout of {len(changed)} modules of the client model (first: {changed[0]}) "
                f"was changed or switched off, and the rate of {on[0]} is not 0: the trunk's "
                "layers can only drop out as the session began, or not at all. Cut a model with "
                "the rates that it is to have, or set the rates of all to 0"
            )
        return False

    def _note(self) -> None:
        """Remember the rates of modules that are new, such as those of an adapter."""
        model = self._model()
        for name, module in _dropouts(model) if model is not None else ():
            if name in self._rates:
                continue
            config: Any = getattr(model, "peft_config", {}).get(ADAPTER)
            rate = module.p
            if name.endswith(f".lora_dropout.{ADAPTER}"):
                rate = float(getattr(config, "lora_dropout", rate))
            if rate:
                self._rates[name] = rate


def _dropouts(model: nn.Module) -> list[tuple[str, _DropoutNd]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _DropoutNd)]


def _drops_by_setting(module: nn.Module) -> bool:
    """Whether it drops out by a function, at a rate that is a plain attribute."""
    return any(
        "drop" in name and isinstance(value, float) and value > 0
        for name, value in vars(module).items()
    )
