"""One run: an entry with one choice of settings and one seed, from start to end."""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy
from safetensors.torch import save_file

from comparison import whole_model
from comparison.entries import Entry, Trial
from comparison.measured import Measured, MeasuredGrid, SiloRound, time_aggregation
from comparison.settings import Settings
from flower_split import SplitConfig
from flower_split.adapters import initial_state
from flower_split.apps.client_app import app as client_app
from flower_split.errors import DivergenceError, RoundError
from flower_split.private_files import make_folder
from flower_split.segments import layers_path, load_skeleton
from flower_split.strategies import Alone, SplitStrategy, build_inner
from flower_split.strategies.hosting.adapter_parts import to_arrays


def run(
    entry: Entry, trial: Trial, seed: int, settings: Settings, adapter: Path | None = None
) -> dict[str, Any]:
    """What the run yields, as JSON holds it; with `failure` where it diverged.

    Args:
        entry: What runs.
        trial: Its learning rate and options.
        seed: Of the silos' data, its order, and the first adapter.
        settings: Of the task.
        adapter: File for the final adapter; None writes none.
    """
    start, busy = time.perf_counter(), time.process_time()
    measured, failure = Measured(), ""
    config = run_config(entry, trial, seed, settings)
    try:
        if entry.how == "central":
            _run_central(config, settings, measured)
        else:
            _run_federated(entry, config, settings, measured, adapter)
    except (DivergenceError, RoundError) as error:
        failure = f"{type(error).__name__}: {error}"
    return {
        "failure": failure,
        "rounds": [
            {"round": number, "silos": [vars(silos[silo]) for silo in sorted(silos)]}
            for number, silos in sorted(measured.rounds.items())
        ],
        "server_seconds": [round(seconds, 5) for seconds in measured.server_seconds],
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
    }


@contextmanager
def silent() -> Iterator[None]:
    """Without the log of every single message and round."""
    loggers = [logging.getLogger(name) for name in ("flwr", "flower_split")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def run_config(entry: Entry, trial: Trial, seed: int, settings: Settings) -> dict[str, Any]:
    """Flower's run config of the run."""
    ranks = [settings.rank_of(silo, mixed=entry.mixed) for silo in range(settings.silos)]
    config: dict[str, Any] = {
        "num-server-rounds": settings.rounds,
        "seed": seed,
        "model.name": settings.model,
        "split.bottom-layers": settings.bottom,
        "split.top-layers": settings.top,
        "lora.r": max(ranks),
        "lora.alpha": 2.0 * max(ranks),
        "train.batch-size": settings.batch_size,
        "train.eval-batch-size": 32,
        "train.max-length": settings.max_length,
        "train.local-steps": settings.steps,
        # As in the strategies' papers: what a silo has learned is in its adapter.
        "train.keep-optimizer": False,
        "tls.mode": "off",  # everything is in one process
        "data.path": settings.data,
        "data.text": settings.text,
        "data.prompt": settings.prompt,
        "data.eval-fraction": settings.eval_fraction,
        "data.partitioner": "dirichlet" if settings.label else "iid",
        "data.partition-by": settings.label,
        "data.dirichlet-alpha": settings.alpha,
        "strategy.min-nodes": settings.silos,
        **trial,
    }
    if entry.strategy:
        config["strategy.name"] = entry.strategy
    if entry.personal:
        config["strategy.personal"] = ",".join(top_layers(settings))
    return config


def top_layers(settings: Settings) -> list[str]:
    """Names of the layers above the trunk, such as `layers.7`."""
    skeleton = load_skeleton(settings.model)
    path = layers_path(skeleton)
    count = len(skeleton.get_submodule(path))
    return [f"{path.rpartition('.')[2]}.{index}" for index in range(count - settings.top, count)]


def _run_federated(
    entry: Entry,
    run_config: dict[str, Any],
    settings: Settings,
    measured: Measured,
    adapter: Path | None,
) -> None:
    config = SplitConfig.from_run_config(run_config)
    inner: Strategy = (
        Alone(min_nodes=settings.silos)
        if entry.how == "alone"
        else build_inner(config.strategy, config.lora)
    )
    time_aggregation(inner, measured)
    with tempfile.TemporaryDirectory() as folder:
        nodes = []
        for silo in range(settings.silos):
            rank = settings.rank_of(silo, mixed=entry.mixed)
            own = {"lora-r": rank, "lora-alpha": 2.0 * rank} if entry.mixed else {}
            nodes.append({"state-dir": folder, **own})
        grid = MeasuredGrid(
            whole_model.app if entry.how == "unsplit" else client_app,
            settings.silos,
            run_config=run_config,
            node_config=nodes,
        )
        grid.measured = measured
        if entry.how == "unsplit":
            skeleton = load_skeleton(settings.model)
            initial = initial_state(skeleton, config.lora, seed=config.seed)
            result = inner.start(grid, to_arrays(initial), num_rounds=settings.rounds)
        else:
            result = SplitStrategy(config, inner).start(grid)
    if adapter is not None:
        make_folder(adapter.parent)
        save_file(result.arrays.to_torch_state_dict(), adapter)


def _run_central(run_config: dict[str, Any], settings: Settings, measured: Measured) -> None:
    config = SplitConfig.from_run_config(run_config)
    for number, found in enumerate(whole_model.train_central(config, settings.silos)):
        for silo, one in enumerate(found):
            measured.rounds[number][silo] = SiloRound(loss=one.loss, held_out=one.examples)
