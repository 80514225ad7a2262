"""The output folder of a run: where its adapter, result and checkpoints go."""

import os
from pathlib import Path

from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError

CHECKPOINTS = "checkpoints"
"""Name of the checkpoints' folder in the output folder."""
TENSORBOARD = "tensorboard"
"""Name of the folder of TensorBoard's event files in the output folder."""


def output_folder(config: SplitConfig) -> Path | None:
    """The folder for what is left of the run, made and writable; None where there is none.

    Raises:
        ConfigError: it is no absolute path, or cannot be made or written.
    """
    if not config.output_dir:
        return None
    folder = Path(config.output_dir).expanduser()
    if not folder.is_absolute():
        raise ConfigError(
            f"output-dir must be an absolute path, not {config.output_dir!r}: the ServerApp runs "
            "in the SuperLink's working directory"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output-dir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"output-dir {folder} is not writable")
    return folder


def checkpoint_folder(config: SplitConfig) -> Path | None:
    """The folder for the run's checkpoints; None where none are written.

    Raises:
        ConfigError: as `output_folder`.
    """
    folder = output_folder(config)
    return None if folder is None or config.checkpoint.keep == 0 else folder / CHECKPOINTS
