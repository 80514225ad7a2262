"""Client models that PEFT wraps after a trunk was attached.

PEFT freezes a model's own weights when it puts the first adapter on it. It takes the stand-ins of
the trunk's layers for an adapter that was there before, and then leaves all weights as they were.
"""

import weakref
from typing import Any

from transformers import PreTrainedModel

from flower_split.adapters.client_adapter import tuner_layers
from flower_split.errors import AdapterError


class LateWrapping:
    """Freezes the weights of a client model once PEFT has wrapped it, as PEFT would have done.

    Args:
        model: The stock model of the client, just before a trunk is attached to it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        wrapped = bool(tuner_layers(model))
        self._model = weakref.ref(model)
        self._free = [] if wrapped else [p for p in model.parameters() if p.requires_grad]
        if self._free:
            model.register_forward_pre_hook(self._before)

    def follow(self) -> None:
        """To be called before gradients are made or an optimizer is.

        Raises:
            AdapterError: the adapter trains biases of the model itself, which are not told apart.
        """
        model = self._model()
        if not self._free or model is None or not (layers := tuner_layers(model)):
            return
        free, self._free = self._free, []
        if not all(parameter.requires_grad for parameter in free):
            return  # whoever froze some of them has looked after the others
        configs: Any = getattr(model, "peft_config", {})
        bias = [getattr(config, "bias", "none") for config in configs.values()]
        if any(kind != "none" for kind in bias):
            raise AdapterError(
                f"the adapter on {layers[0][0]} trains biases of the client model, which was "
                "wrapped after attach_trunk: PEFT has left all of its weights trainable. Wrap it "
                "first, then attach"
            )
        for parameter in free:
            parameter.requires_grad_(False)

    def _before(self, *_: object) -> None:
        self.follow()
