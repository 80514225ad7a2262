"""Plain Flower and PEFT on the uncut model: the run that a split run must equal.

Nothing of flower_split is used here but the grid, which only carries messages.
"""

import copy
import random

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from in_process_grid import InProcessGrid
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM


def uncut_model(folder, lora, kind=LoraConfig):
    """The uncut model with PEFT's adapters, initialised by PEFT from seed 0."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    return get_peft_model(model, kind(task_type="CAUSAL_LM", **lora))


def plain_client_app(
    folder,
    lora,
    steps_of,
    *,
    kind=LoraConfig,
    lr,
    max_grad_norm,
    weight_decay,
    rate=None,
    by_tokens=False,
    keep=True,
    losing=frozenset(),
    forgetting=frozenset(),
):
    """A ClientApp that trains the uncut model.

    Args:
        folder: The model.
        lora: Arguments of PEFT's config.
        steps_of: Gives, for a partition id and a round, the microbatches of every step, and the
            silo's weight.
        kind: PEFT's config of the method.
        lr: Peak learning rate.
        max_grad_norm: Bound of the gradient norm.
        weight_decay: AdamW's.
        rate: Factor of the learning rate by step of the run.
        by_tokens: Whether a step's loss is the mean over the tokens of all its microbatches.
        keep: Whether a silo's AdamW goes on where that of its last round stopped.
        losing: Rounds, (partition, round), whose replies are lost; no later round resumes from
            their AdamW.
        forgetting: Rounds, (partition, round), before which a silo's AdamW is lost.
    """
    app = ClientApp()
    kept = {}

    @app.train()
    def train(message, context):
        server_round = message.content["config"]["server-round"]
        partition = context.node_config["partition-id"]
        steps, num_examples = steps_of(partition, server_round)
        model = uncut_model(folder, lora, kind)
        set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
        if (partition, server_round) in forgetting:
            del kept[partition]
        if keep and partition in kept:
            optimizer.load_state_dict(copy.deepcopy(kept[partition]))
        model.train()
        for number, microbatches in enumerate(steps, start=(server_round - 1) * len(steps)):
            for group in optimizer.param_groups:
                group["lr"] = lr * (rate(number) if rate else 1.0)
            tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in microbatches)
            for batch in microbatches:
                extra = {"num_items_in_batch": tokens} if by_tokens else {}
                loss = model(**batch, **extra).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if (partition, server_round) not in losing:
            kept[partition] = copy.deepcopy(optimizer.state_dict())
        content = RecordDict(
            {
                "arrays": ArrayRecord(get_peft_model_state_dict(model)),
                "metrics": MetricRecord({"num-examples": num_examples, "train-loss": loss.item()}),
            }
        )
        return Message(content, reply_to=message)

    return app


def run_plain(app, strategy, initial, *, num_nodes, num_rounds, tamper=None):
    """The adapters after a run of Flower's own loop."""
    random.seed(0)
    grid = InProcessGrid(app, num_nodes, tamper=tamper)
    return strategy.start(grid, initial, num_rounds=num_rounds).arrays
