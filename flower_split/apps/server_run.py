"""A run on the server, from its run config to the files that are left of it."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from flower_split.apps.logs import join_flower_log
from flower_split.apps.run_record import RunRecord
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError
from flower_split.strategies import (
    Alone,
    SplitResult,
    SplitStrategy,
    TrunkHost,
    build_inner,
    inner_problems,
)

logger = logging.getLogger(__name__)


def serve_run(grid: Grid, values: Mapping[str, Any]) -> SplitResult:
    """Run what the run config `values` describes; what a failed run had learned is saved too.

    Raises:
        ConfigError: with every problem of the run config at once.
        FlowerSplitError: the model cannot be loaded or hosted, too few silos count in a round, or
            the run was stopped.
    """
    join_flower_log()
    config = read_run_config(values, check_strategy=inner_problems)
    folder = _output_folder(config)
    with TrunkHost(config) as host:
        strategy = SplitStrategy(config, build_inner(config.strategy, config.lora), host=host)
        baseline = _baseline(config, host)
        with RunRecord(folder, host.plan, config.model.name, values, strategy, baseline):
            strategy.start(grid)
            if baseline is not None:
                logger.info("and now every silo alone, for comparison")
                baseline.start(grid)
    return strategy.result


def _baseline(config: SplitConfig, host: TrunkHost) -> SplitStrategy | None:
    if not config.baseline_alone:
        return None
    quiet = replace(config, evaluate_initial=False, sample_prompt="")
    inner = Alone(
        min_nodes=config.strategy.min_nodes, fraction_evaluate=config.strategy.fraction_evaluate
    )
    return SplitStrategy(quiet, inner, host=host)


def _output_folder(config: SplitConfig) -> Path | None:
    """The folder for what is left of the run, made and writable."""
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
