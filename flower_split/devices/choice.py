"""The choice of a device by name, and whether this machine has it."""

import torch

from flower_split.config.checks import device_name
from flower_split.errors import ConfigError


def resolve_device(
    name: str, *, key: str = "device", instead: str = "set it to 'auto'"
) -> torch.device:
    """The device that `name` means on this machine.

    Args:
        name: `auto` (CUDA where there is one, else MPS, else the CPU), `cpu`, `mps`, `cuda`, or
            `cuda:N`.
        key: What errors call the setting.
        instead: What else can be done, as errors say it.

    Raises:
        ConfigError: `name` is none of these, or this machine has no such device.
    """
    device_name(key, name)
    device = torch.device(automatic() if name == "auto" else name)
    if device.type == "cuda":
        number, count = device.index or 0, torch.cuda.device_count()
        if number >= count:
            raise ConfigError(
                f"{key} is {name!r}, and torch {torch.__version__} finds {count} CUDA devices "
                "here: check the driver, CUDA_VISIBLE_DEVICES and that torch was built for CUDA, "
                f"or {instead}"
            )
        return torch.device("cuda", number)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"{key} is 'mps', and torch {torch.__version__} finds no Apple GPU here: {instead}"
        )
    return device


def automatic() -> str:
    """The first of `cuda`, `mps` and `cpu` that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
