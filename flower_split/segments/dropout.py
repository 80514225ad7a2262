"""Whether a model computes otherwise in training mode than in evaluation."""

from torch import nn
from transformers import PreTrainedConfig

OTHER_HEADS = ("classifier_", "summary_")
"""How the settings of heads begin that classify sequences or tokens, in all families."""


def has_dropout(module: nn.Module, config: PreTrainedConfig) -> bool:
    """Whether anything is dropped or jittered in training mode, as far as can be told.

    Stock models drop out by modules and by functions whose rates are settings. The rates of heads
    that no causal language model has do not count; those of other parts do, wherever these are.
    """
    rates = (
        value
        for name, value in config.to_dict().items()
        if ("drop" in name or "jitter" in name)
        and not name.startswith(OTHER_HEADS)
        and isinstance(value, float | int)
    )
    return any(rates) or any(
        isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in module.modules()
    )
