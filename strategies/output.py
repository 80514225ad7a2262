"""The output folder of a run: where its adapter, result and checkpoints go."""

import os
from pathlib import Path

from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError
from flower_split.private_files import make_folder
from flower_split.user_folders import expanded

ADAPTER = "adapter"
"""Name of the adapter's folder in the output folder."""
CHECKPOINTS = "checkpoints"
"""Name of the checkpoints' folder in the output folder."""
TENSORBOARD = "tensorboard"
"""Name of the folder of TensorBoard's event files in the output folder."""


def output_folder(config: SplitConfig) -> Path | None:
    """The folder for what is left of the run, made and writable; None where there is none.

    Raises:
        ConfigError: it is no absolute path, cannot be made or written, or has a link in the place
            of one of ours.
    """
    if not config.output_dir:
        return None
    try:
        folder = expanded(config.output_dir)
    except OSError as error:
        raise ConfigError(f"output-dir {config.output_dir!r}: {error.strerror}") from error
    if not folder.is_absolute():
        raise ConfigError(
            f"output-dir must be an absolute path, not {config.output_dir!r}: the ServerApp runs "
            "in the SuperLink's working directory"
        )
    try:
        folder = make_folder(folder)
    except OSError as error:
        raise ConfigError(f"output-dir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"output-dir {folder} is not writable")
    for name in (ADAPTER, CHECKPOINTS, TENSORBOARD):
        if os.path.islink(folder / name):
            raise ConfigError(
                f"output-dir {folder} has a link {name!r}, and what a run writes goes through "
                "none: remove it. output-dir itself may be a link to another disk"
            )
    return folder


def checkpoint_folder(config: SplitConfig) -> Path | None:
    """The folder for the run's checkpoints; None where none are written.

    Raises:
        ConfigError: as `output_folder`.
    """
    folder = output_folder(config)
    return None if folder is None or config.checkpoint.keep == 0 else folder / CHECKPOINTS
