"""The model's context length, which no sequence of a run may exceed."""

from transformers import PreTrainedModel

from flower_split.errors import ConfigError


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Raise `ConfigError` when sequences may be longer than the model was made for."""
    settings = model.config.get_text_config(decoder=True)
    context = getattr(settings, "max_position_embeddings", None)
    if isinstance(context, int) and max_length > context:
        raise ConfigError(
            f"train.max-length {max_length} is more than the {context} tokens of the model's "
            f"context: set it to at most {context}"
        )
