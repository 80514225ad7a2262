"""A run on the server, from its run config to the files that are left of it."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.common.config import get_project_dir
from flwr.serverapp import Grid

from flower_split.adapters import method_problems
from flower_split.apps.checking.advice import advice
from flower_split.apps.folder.archive import check_installed
from flower_split.apps.monitoring.beside import monitor_beside
from flower_split.apps.process import set_up_process
from flower_split.apps.results import round_result
from flower_split.apps.run_record import RunRecord
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import EarlyStopConfig, SplitConfig
from flower_split.privacy import check_accountant
from flower_split.reporting.events import EventLog
from flower_split.reporting.tensorboard import ScalarWriter
from flower_split.reporting.trackers import Trackers
from flower_split.strategies import (
    Alone,
    SplitResult,
    SplitStrategy,
    TrunkHost,
    build_inner,
    inner_problems,
)
from flower_split.strategies.inner import check_inner
from flower_split.strategies.output import TENSORBOARD, checkpoint_folder, output_folder
from flower_split.strategies.run_events import told_settings

logger = logging.getLogger(__name__)

ALONE = "alone"
"""Folder for the checkpoints of the baseline, in that of the run's."""


def serve_run(grid: Grid, values: Mapping[str, Any]) -> SplitResult:
    """Run what the run config `values` describes; what a failed run had learned is saved too.

    Raises:
        ConfigError: with every problem of the run config at once; or the app has brought files
            along that must not leave the machine of whoever submitted it.
        FlowerSplitError: the model cannot be loaded or hosted, too few silos count in a round, or
            the run was stopped.
    """
    set_up_process()
    _check_app(grid)
    config = read_run_config(values, check_strategy=inner_problems, check_method=method_problems)
    if config.wire.hides:
        check_accountant("noise at the cuts (wire.h1-noise, wire.g2-noise)")
    if config.dp.noise:
        check_accountant("DP-SGD (dp.noise)")
    folder, checkpoints = output_folder(config), checkpoint_folder(config)
    if folder is None:
        logger.warning("output-dir is empty: nothing of this run is kept, no adapter and no result")
    inner = build_inner(config.strategy, config.lora)
    check_inner(inner, config.lora, config.peft)  # before the model is loaded
    with ExitStack() as stack:
        scalars = list[ScalarWriter | Trackers]()
        if folder is not None and config.tensorboard:
            scalars.append(stack.enter_context(ScalarWriter(folder / TENSORBOARD)))
        if config.trackers:
            trackers = Trackers(config.trackers, told_settings(config))
            scalars.append(stack.enter_context(trackers))
        host = stack.enter_context(TrunkHost(config))
        for text in advice(config, host.parameters):
            logger.warning("%s", text)
        events = None
        if folder is not None:
            events = stack.enter_context(EventLog(folder, resume=config.resume))
        if folder is not None and config.monitor:
            for line in stack.enter_context(monitor_beside(folder, config.monitor_address)):
                logger.info("the run's live page: %s", line)

        def on_round(result: SplitResult, server_round: int) -> None:
            if scalars and result is strategy.result:
                one = round_result(result, server_round)
                for writer in scalars:
                    writer.write(one)
            record.note_round()

        strategy = SplitStrategy(config, inner, host=host, on_round=on_round, events=events)
        baseline = _baseline(config, host, checkpoints, on_round, events)
        record = RunRecord(folder, host.plan, config, values, strategy, baseline, events=events)
        with record:
            strategy.start(grid)
            if baseline is not None:
                logger.info("and now every silo alone, for comparison")
                baseline.start(grid, num_rounds=strategy.result.last_round)
    return strategy.result


def _check_app(grid: Grid) -> None:
    """Before a silo gets the app: refuse one that is more than code, where it was unpacked here."""
    try:
        run = grid.run
        folder = get_project_dir(run.fab_id, run.fab_version, run.fab_hash)
    except (AttributeError, ValueError):
        return  # a grid of one process, whose run has no archive
    if folder.is_dir():
        check_installed(folder)


def _baseline(
    config: SplitConfig,
    host: TrunkHost,
    checkpoints: Path | None,
    on_round: Callable[[SplitResult, int], None],
    events: EventLog | None,
) -> SplitStrategy | None:
    if not config.baseline_alone:
        return None
    quiet = replace(
        config,
        evaluate_initial=False,
        sample_prompt="",
        early_stop=EarlyStopConfig(),
        checkpoint=replace(config.checkpoint, keep_best=False),
        strategy=replace(config.strategy, filter="off"),  # nothing is aggregated
    )
    inner = Alone(
        min_nodes=config.strategy.min_nodes,
        fraction_evaluate=config.strategy.fraction_evaluate,
        lora=config.lora if config.peft.is_plain else None,
    )
    folder = None if checkpoints is None else checkpoints / ALONE
    return SplitStrategy(
        quiet,
        inner,
        host=host,
        checkpoints=folder,
        on_round=on_round,
        label=ALONE,
        events=events,
    )
