"""The LoRA strategies over a split model, as `unsplit_app` runs them over the uncut one."""

import torch
from flwr.clientapp import ClientApp
from in_process_grid import InProcessGrid
from unsplit_app import TARGETS, batches_of

from flower_split.client import SplitSession
from flower_split.config.run_config import read_run_config
from flower_split.strategies import SplitStrategy, build_inner


def split_config(folder, **changes):
    """Run-config values that describe what `unsplit_app` does with the same learning rate."""
    return {
        "model.name": str(folder),
        "split.bottom-layers": 1,
        "split.top-layers": 1,
        "lora.r": 4,
        "lora.alpha": 8,
        "lora.target-modules": ", ".join(TARGETS),
        "train.learning-rate": 5e-3,
        "train.keep-optimizer": False,
        "strategy.min-nodes": 3,
        "num-server-rounds": 2,
        "evaluate-initial": False,
        **changes,
    }


def split_app(before=None):
    """A ClientApp that trains and evaluates through the trunk; `before` sees every message."""
    app = ClientApp()

    def opened(message, context):
        if before is not None:
            before(message, context)
        return SplitSession(message, context)

    @app.train()
    def train(message, context):
        with opened(message, context) as session:
            number = session.server_round
            batches, examples = batches_of(context.node_config["partition-id"], number)
            session.model.train()
            for batch in batches:
                loss = session.model(**batch).loss
                loss.backward()
                session.optimizer.step()
                session.optimizer.zero_grad()
            return session.reply({"train-loss": loss.item()}, num_examples=examples)

    @app.evaluate()
    def evaluate(message, context):
        with opened(message, context) as session:
            batches, examples = batches_of(context.node_config["partition-id"], 0)
            session.model.eval()
            with torch.no_grad():
                loss = float(session.model(**batches[0]).loss)
            return session.reply({"eval-loss": loss}, num_examples=examples)

    return app


def run_split_lora(values, initial=None, *, loras=None, before=None, inner=None, **grid):
    """The result of a run, and its grid.

    Args:
        values: The run config.
        initial: The adapter to start from.
        loras: `r` and `alpha` of every silo, by partition; None for the run's.
    """
    config = read_run_config(values)
    own = [{f"lora-{name}": value for name, value in lora.items()} for lora in loras or [{}] * 3]
    in_process = InProcessGrid(split_app(before), 3, run_config=values, node_config=own, **grid)
    inner = inner or build_inner(config.strategy, config.lora)
    return SplitStrategy(config, inner).start(in_process, initial), in_process
