"""PEFT's notices: warnings of what it does itself, which say nothing to who trains."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_peft_notices() -> Iterator[None]:
    """Let PEFT wrap a model without them, for the time of a `with` block."""
    with warnings.catch_warnings():
        # That it corrected `fan_in_fan_out`; the plan notes what it found.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        # That it uses a name which transformers has deprecated.
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        yield
