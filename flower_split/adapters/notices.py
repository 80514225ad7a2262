"""PEFT's notices of its own doings, kept away from users, who did not ask for what they tell."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal


@contextmanager
def without_peft_notices(*, patterns: bool = True) -> Iterator[None]:
    """Have PEFT wrap a model, or make a config, without its warnings, for a `with` block.

    Args:
        patterns: Whether ranks and alphas may be given for modules that the model does not have, as
            a part of one does not; where not, PEFT's warning of them is raised.
    """
    with warnings.catch_warnings():
        action: Literal["ignore", "error"] = "ignore" if patterns else "error"
        warnings.filterwarnings(action, message="The following (rank|alpha)_pattern keys")
        # That it corrected `fan_in_fan_out`; the plan notes what it found.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        # That it uses a name which transformers has deprecated.
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        # That what is drawn from a seed is not saved; it is drawn again, and compared.
        warnings.filterwarnings("ignore", message="Specified to not save", category=UserWarning)
        yield
