"""The split runner: a run through the trunk on a tiny model in one process, as `uncut_run`'s."""

import torch
from flwr.clientapp import ClientApp
from in_process_grid import FIRST_NODE, InProcessGrid
from steps import SILOS, steps_of
from uncut_model import logits

from flower_split.client import SplitSession
from flower_split.config.run_config import read_run_config
from flower_split.strategies import SplitStrategy, build_inner
from flower_split.transport.grpc.transport import GrpcTransport

TOLERANCE = 1e-6
"""Largest difference of an adapter tensor, relative to its largest element."""


def split_app(*, connect=GrpcTransport, steps=steps_of, before=None, seen=None):
    """A ClientApp that trains and evaluates through the trunk.

    Args:
        connect: Makes the transport.
        steps: As `uncut_app`'s.
        before: Sees every message first, and its context.
        seen: Gets, by partition and round, what each silo's model computed in evaluations.
    """
    app = ClientApp()

    def opened(message, context):
        if before is not None:
            before(message, context)
        return SplitSession(message, context, connect=connect)

    @app.train()
    def train(message, context):
        with opened(message, context) as session:
            partition = context.node_config["partition-id"]
            microbatches_of_steps, examples = steps(partition, session.server_round)
            session.model.train()
            ranks = getattr(session.model.base_model, "update_and_allocate", None)
            first = (session.server_round - 1) * len(microbatches_of_steps)
            for number, microbatches in enumerate(microbatches_of_steps, start=first):
                for batch in microbatches:
                    loss = session.model(**batch).loss
                    loss.backward()
                session.optimizer.step()
                if ranks is not None:
                    ranks(number)
                session.optimizer.zero_grad()
            return session.reply({"train-loss": loss.item()}, num_examples=examples)

    @app.evaluate()
    def evaluate(message, context):
        with opened(message, context) as session:
            partition = context.node_config["partition-id"]
            ((batch,), *_), examples = steps(partition, 0)
            session.model.eval()
            with torch.no_grad():
                loss = float(session.model(**batch).loss)
            if seen is not None:
                seen["evaluate", session.server_round, partition] = logits(session.model)
            return session.reply({"eval-loss": loss}, num_examples=examples)

    return app


def run_split(
    values,
    inner=None,
    initial=None,
    *,
    silos=SILOS,
    loras=None,
    host=None,
    connect=GrpcTransport,
    steps=steps_of,
    before=None,
    seen=None,
    timeout=None,
    **grid,
):
    """The result of a run, and the grid it ran in.

    Args:
        values: The run config; see `run_config`.
        inner: The strategy; without it, the run config's.
        initial: The adapter to start from.
        silos: How many.
        loras: `r` and `alpha` of every silo, by partition; None for the run's.
        host: Of the trunk; without it, one of the run's own.
        timeout: How long a reply is waited for, in seconds; None for the run config's.
        grid: `InProcessGrid`'s; and see `split_app` for the rest.
    """
    config = read_run_config(values)
    app = split_app(connect=connect, steps=steps, before=before, seen=seen)
    if loras is not None:
        grid["node_config"] = [{f"lora-{name}": v for name, v in lora.items()} for lora in loras]
    in_process = InProcessGrid(app, silos, run_config=values, **grid)
    inner = inner or build_inner(config.strategy, config.lora)
    strategy = SplitStrategy(config, inner, host=host)
    return strategy.start(in_process, initial, timeout=timeout), in_process


def failed_rounds(result):
    """The rounds, (partition, round), in which a silo failed."""
    return {(r.node_id - FIRST_NODE, r.server_round) for r in result.history if r.failure}


def losing_replies(losing):
    """For `InProcessGrid`: the replies in `losing`, (partition, round), never arrive."""
    rounds = {}

    def tamper(reply):
        partition = reply.metadata.src_node_id - FIRST_NODE
        rounds[partition] = rounds.get(partition, 0) + 1
        return [] if (partition, rounds[partition]) in losing else [reply]

    return tamper


def largest_difference(ours, theirs):
    return max(
        float((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max().clamp(min=1e-12))
        for k in theirs
    )
