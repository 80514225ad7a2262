"""A run on the server, from its run config to the files that are left of it."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from flower_split.adapters import AdapterPlan, save_adapter
from flower_split.apps.logs import join_flower_log
from flower_split.apps.results import run_result
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError
from flower_split.reporting import plot_losses, write_result
from flower_split.strategies import (
    Alone,
    SplitResult,
    SplitStrategy,
    TrunkHost,
    build_inner,
    inner_problems,
)

logger = logging.getLogger(__name__)

ADAPTER, RESULT, PLOT = "adapter", "result.json", "losses.png"
"""Names in the output folder."""


def serve_run(grid: Grid, values: Mapping[str, Any]) -> SplitResult:
    """Run what the run config `values` describes; what a failed run had learned is saved too.

    Raises:
        ConfigError: with every problem of the run config at once.
        FlowerSplitError: the model cannot be loaded or hosted, or a round failed on every silo.
    """
    join_flower_log()
    config = read_run_config(values, check_strategy=inner_problems)
    folder = _output_folder(config)
    started = time.monotonic()
    with TrunkHost(config) as host:
        strategy = SplitStrategy(config, build_inner(config.strategy), host=host)
        baseline = _baseline(config, host)
        try:
            strategy.start(grid)
            if baseline is not None:
                logger.info("and now every silo alone, for comparison")
                baseline.start(grid)
        finally:
            if folder is not None:
                alone = None if baseline is None else baseline.result
                report = run_result(
                    strategy.result,
                    alone,
                    config=values,
                    seconds=time.monotonic() - started,
                )
                write_result(report, folder / RESULT)
                plot_losses(report, folder / PLOT)
                _save(strategy.result, host.plan, folder, config)
    return strategy.result


def _baseline(config: SplitConfig, host: TrunkHost) -> SplitStrategy | None:
    if not config.baseline_alone:
        return None
    quiet = replace(config, evaluate_initial=False, sample_prompt="")
    inner = Alone(
        min_nodes=config.strategy.min_nodes, fraction_evaluate=config.strategy.fraction_evaluate
    )
    return SplitStrategy(quiet, inner, host=host)


def _save(result: SplitResult, plan: AdapterPlan, folder: Path, config: SplitConfig) -> None:
    if result.adapter:
        save_adapter(result.adapter, plan, folder / ADAPTER, base_model=config.model.name)
        logger.info("adapter, %s and %s are in %s", RESULT, PLOT, folder)


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
