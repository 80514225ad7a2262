"""An inner strategy's message: one adapter and one config, under whatever names it gives them."""

from flwr.app import ArrayRecord, ConfigRecord, Message

from flower_split.errors import RoundError
from flower_split.transport.records import miscounted


def adapter_and_config(
    message: Message,
) -> tuple[tuple[str, ArrayRecord], tuple[str, ConfigRecord]]:
    """Name and record of the adapter in `message`, and of its config.

    Raises:
        RoundError: there is not exactly one of each.
    """
    arrays, configs = message.content.array_records, message.content.config_records
    problem = miscounted(
        "the inner strategy's message", {"ArrayRecord": arrays, "ConfigRecord": configs}
    )
    if problem:
        raise RoundError(problem)
    (adapter,), (config,) = arrays.items(), configs.items()
    return adapter, config
