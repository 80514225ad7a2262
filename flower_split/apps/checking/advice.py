"""Advice: settings that fit a toy and no real model, or no model of this size."""

from flower_split.config.sections import SplitConfig
from flower_split.reporting.figures import four_digits

REAL = 50_000_000
"""Parameters from which on a model is no toy."""
HIGH_RATE = 2e-3
"""Learning rate of AdamW above which LoRA of a real model seldom learns: 1e-4 to 5e-4 is usual."""
FEW_STEPS = 50
"""Optimizer steps of a whole run below which a real model has hardly learned anything."""
SHORT = 128
"""Tokens at which most texts for a real model would be cut off."""
LOW_RATE = 5e-5


def advice(config: SplitConfig, parameters: int) -> list[str]:
    """What of the settings hardly fits a model of so many parameters, a sentence each."""
    if parameters < REAL:
        return []
    train, found = config.train, list[str]()
    model = f"a model of {in_parameters(parameters)} parameters"
    if train.learning_rate > HIGH_RATE:
        found.append(
            f"train.learning-rate {four_digits(train.learning_rate)} is a toy's: {model} is "
            "usually fine-tuned with 1e-4 to 5e-4, and may diverge or forget with more"
        )
    elif 0 < train.learning_rate < LOW_RATE and config.peft.is_plain:
        found.append(
            f"train.learning-rate {train.learning_rate:g} is what all weights of {model} are "
            "trained with: adapters usually take 1e-4 to 5e-4"
        )
    steps = train.local_steps * config.num_server_rounds
    if 0 < steps < FEW_STEPS:
        found.append(
            f"num-server-rounds {config.num_server_rounds} x train.local-steps {train.local_steps} "
            f"are {steps} steps in all, a demonstration's: set train.local-steps to 0 for whole "
            "passes over the data, or raise it"
        )
    if train.max_length <= SHORT:
        found.append(
            f"train.max-length {train.max_length} cuts most texts off: 512 to 2048 tokens are "
            "usual where memory allows"
        )
    if 0 < config.data.max_examples < 500:
        found.append(
            f"data.max-examples {config.data.max_examples} leaves out the rest of every silo's "
            "data: set it to 0 for all of it"
        )
    return found


def in_parameters(count: int) -> str:
    """A number of parameters, such as `1.7 M` or `0.6 B`."""
    if count >= 500_000_000:
        return f"{count / 1e9:.1f} B"
    return f"{count / 1e6:.1f} M" if count >= 100_000 else str(count)
