"""The stock class of a model for a task, and the task of a stock class.

A configuration names the class in `architectures`, as transformers writes it.
"""

from typing import Any, cast

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)

from flower_split.config.tasks import (
    CAUSAL_LM,
    MASKED_LM,
    SEQUENCE_CLASSIFICATION,
    TASKS,
    TOKEN_CLASSIFICATION,
)
from flower_split.errors import UnsupportedFamilyError

_MAPPINGS: dict[str, Any] = {
    CAUSAL_LM: MODEL_FOR_CAUSAL_LM_MAPPING,
    SEQUENCE_CLASSIFICATION: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    TOKEN_CLASSIFICATION: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MASKED_LM: MODEL_FOR_MASKED_LM_MAPPING,
}
_AUTO: dict[str, Any] = {
    CAUSAL_LM: AutoModelForCausalLM,
    SEQUENCE_CLASSIFICATION: AutoModelForSequenceClassification,
    TOKEN_CLASSIFICATION: AutoModelForTokenClassification,
    MASKED_LM: AutoModelForMaskedLM,
}
_NOUNS = {
    CAUSAL_LM: "causal language model",
    SEQUENCE_CLASSIFICATION: "sequence classifier",
    TOKEN_CLASSIFICATION: "token classifier",
    MASKED_LM: "masked language model",
}


def stock_class(config: PreTrainedConfig, task: str | None = None) -> type[PreTrainedModel]:
    """The stock class for `config`, such as `LlamaForCausalLM`.

    Args:
        config: Of the model.
        task: One of `TASKS`; None for the one that `config` names.

    Raises:
        UnsupportedFamilyError: transformers has none.
    """
    task = task or task_of(config)
    stock = _find(config, task)
    if stock is None:
        others = [name for name in TASKS if _find(config, name) is not None]
        more = f"; it has model.task {', '.join(others)}" if others else ""
        raise UnsupportedFamilyError(
            f"model family {config.model_type!r} has no {_NOUNS[task]} in transformers{more}"
        )
    return stock


def auto_class(config: PreTrainedConfig) -> Any:
    """The `AutoModelFor…` that makes and loads a model for the task that `config` names."""
    return _AUTO[task_of(config)]


def task_of(config: PreTrainedConfig) -> str:
    """The task of the class that `config` names; `causal-lm` where that is of none of them."""
    named = next(iter(config.architectures or ()), None)
    for task in TASKS:
        stock = _find(config, task)
        if stock is not None and stock.__name__ == named:
            return task
    return CAUSAL_LM


def task_of_model(model: PreTrainedModel) -> str:
    """The task of a stock model, by its class; `causal-lm` where that is of none of them."""
    found = [t for t in TASKS if (s := _find(model.config, t)) and isinstance(model, s)]
    return next(iter(found), CAUSAL_LM)


def _find(config: PreTrainedConfig, task: str) -> type[PreTrainedModel] | None:
    found = _MAPPINGS[task].get(type(config), None)
    stock = found[0] if isinstance(found, tuple | list) else found
    return cast("type[PreTrainedModel] | None", stock)
