"""The steps that uncut and split runs make, and the settings with which they make them."""

import torch

SILOS, STEPS = 3, 3
KEEPING = {
    "lora.target-modules": "all-linear",
    "train.max-grad-norm": 0.05,
    "train.weight-decay": 0.01,
    "train.keep-optimizer": True,
    "num-server-rounds": 3,
    "strategy.fraction-evaluate": 0.0,
}
"""Changes of `run_config`: three rounds of training, in which silos keep their AdamW."""
TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
"""Modules of a Llama with an adapter, where not all of them have one."""


def steps_of(partition, server_round):
    """The microbatches of every step of a silo's round, one each; and the silo's weight."""
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    steps = []
    for _ in range(STEPS):
        ids = torch.randint(4, 15, (3, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 7:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        steps.append([{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    return steps, 10 * (partition + 1)


def run_config(folder, **changes):
    """Run-config values of two rounds with evaluations, in which every round starts afresh."""
    return {
        "model.name": str(folder),
        "split.bottom-layers": 1,
        "split.top-layers": 1,
        "lora.r": 4,
        "lora.alpha": 8,
        "lora.rslora": False,
        "lora.target-modules": ", ".join(TARGETS),
        "train.learning-rate": 5e-3,
        "train.max-grad-norm": 1.0,
        "train.weight-decay": 0.0,
        "train.keep-optimizer": False,
        "strategy.min-nodes": SILOS,
        "num-server-rounds": 2,
        "evaluate-initial": False,
        **changes,
    }
