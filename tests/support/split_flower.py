"""A split run on a tiny model in one process, as `plain_flower` runs the uncut model."""

import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from in_process_grid import FIRST_NODE, InProcessGrid
from peft import get_peft_model_state_dict
from plain_flower import uncut_model

from flower_split.client import SplitSession
from flower_split.config.run_config import read_run_config
from flower_split.strategies import SplitStrategy
from flower_split.transport.grpc.transport import GrpcTransport

SILOS, ROUNDS, STEPS = 3, 3, 3
TOLERANCE = 1e-6
"""Largest difference of an adapter tensor, relative to its largest element."""

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
TRAIN = {"lr": 5e-3, "max_grad_norm": 0.05, "weight_decay": 0.01}

RUN_CONFIG = {
    "split.bottom-layers": 1,
    "split.top-layers": 1,
    "lora.r": 4,
    "lora.alpha": 8,
    "train.learning-rate": TRAIN["lr"],
    "train.max-grad-norm": TRAIN["max_grad_norm"],
    "train.weight-decay": TRAIN["weight_decay"],
    "num-server-rounds": ROUNDS,
    "strategy.fraction-evaluate": 0.0,
    "evaluate-initial": False,
}


def steps_of(partition, server_round):
    """One microbatch for every step of a silo's round, padded on the right; the silo's weight."""
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    steps = []
    for _ in range(STEPS):
        ids = torch.randint(4, 15, (3, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 7:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        steps.append([{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    return steps, 10 * (partition + 1)


def split_client_app(connect=GrpcTransport, steps_of=steps_of, before=None):
    """A ClientApp that trains through the trunk; `before` sees every message first."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        if before is not None:
            before(message, context)
        with SplitSession(message, context, connect=connect) as session:
            steps, num_examples = steps_of(
                context.node_config["partition-id"], session.server_round
            )
            for (batch,) in steps:
                loss = session.model(**batch).loss
                loss.backward()
                session.optimizer.step()
                session.optimizer.zero_grad()
            return session.reply({"train-loss": loss.item()}, num_examples=num_examples)

    return app


def run_split(
    folder,
    inner,
    initial,
    *,
    connect=GrpcTransport,
    steps=steps_of,
    silos=SILOS,
    losing=frozenset(),
    host=None,
    changes=None,
    before=None,
    **grid,
):
    """The result of a run in which the replies in `losing`, (partition, round), never arrive."""
    values = {**RUN_CONFIG, "model.name": str(folder), **(changes or {})}
    app = split_client_app(connect, steps, before)
    in_process = InProcessGrid(app, silos, run_config=values, tamper=losing_replies(losing), **grid)
    timeout = 0.3 if losing else None
    strategy = SplitStrategy(read_run_config(values), inner, host=host)
    result = strategy.start(in_process, initial, timeout=timeout)
    failed = {(r.node_id - FIRST_NODE, r.server_round) for r in result.history if r.failure}
    assert failed == set(losing)
    return result


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


def initial_arrays(folder):
    return ArrayRecord(get_peft_model_state_dict(uncut_model(folder, LORA)))
