"""The uncut reference: a plain Flower and PEFT run of the whole model, that others must equal.

Nothing of flower_split is used here but the grid, which only carries messages; and, where a
strategy needs it, the `AdapterExchange` that an app without a split puts into every silo.
"""

import copy
import random
from types import SimpleNamespace

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from in_process_grid import FIRST_NODE, InProcessGrid
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from steps import SILOS, run_config, steps_of
from uncut_model import load_prompt, logits, peft_model, prompt_state

from flower_split.client import AdapterExchange


class PlainExchange:
    """Takes the adapter of a message and replies with the trained one, as a Flower app does."""

    def __init__(self, model, message, context):
        self.model, self.message = model, message
        set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())

    def correct_gradients(self):
        pass

    def reply(self, metrics):
        if hasattr(self.model.base_model, "rankallocator"):  # all silos' tensors are of a shape
            self.model.peft_config["default"].rank_pattern = None
        arrays = ArrayRecord(get_peft_model_state_dict(self.model))
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=self.message)


class PromptExchange(PlainExchange):
    """The same of a prompt's encoder: PEFT saves what it gives, and not what is trained."""

    def __init__(self, model, message, context):
        self.model, self.message = model, message
        load_prompt(model, message.content["arrays"].to_torch_state_dict())

    def reply(self, metrics):
        arrays = ArrayRecord(prompt_state(self.model))
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=self.message)


def exchange_in(state_dir):
    """An `AdapterExchange` with a folder of every silo's in `state_dir`."""

    def exchange(model, message, context):
        own = state_dir / str(context.node_config["partition-id"])
        return AdapterExchange(model, message, context, folder=own)

    return exchange


def uncut_app(
    folder,
    exchange=PlainExchange,
    *,
    config=None,
    loras=None,
    steps=steps_of,
    rate=None,
    by_tokens=False,
    share=None,
    first_target=1,
    losing=frozenset(),
    forgetting=frozenset(),
    seen=None,
):
    """A ClientApp that trains and evaluates the uncut model.

    Args:
        folder: The model.
        exchange: How a silo has the adapter from a message and replies, made of model, message and
            context.
        config: What `run_config` gave, of which the optimizer's settings are taken here; its
            defaults without a bound of the gradient norm where there is none.
        loras: Arguments of `peft_model` by partition; the same for all when it is a dict. Or a
            function of partition and round.
        steps: Gives, for a partition id and a round, the microbatches of every step, and the
            silo's weight.
        rate: Factor of the learning rate by step of the run.
        by_tokens: Whether a step's loss is the mean over the tokens of all its microbatches.
        share: Factor of a microbatch's loss, made of it and its step's; 1 without.
        first_target: The first token of a row that has a loss: 0 after virtual ones.
        losing: Rounds, (partition, round), whose replies are lost; no later round resumes from
            their AdamW.
        forgetting: Rounds, (partition, round), before which a silo's AdamW is lost.
        seen: Gets, by partition and round, what each silo's model looked like after training, and
            what it computed in evaluations.
    """
    app = ClientApp()
    config = config or run_config(folder, **{"train.max-grad-norm": 0.0})
    lr, bound = config["train.learning-rate"], config["train.max-grad-norm"]
    kept = {}
    seen = {} if seen is None else seen

    def prepare(message, context):
        partition = context.node_config["partition-id"]
        number = message.content["config"]["server-round"]
        lora = loras[partition] if isinstance(loras, list) else loras or {}
        if callable(lora):
            lora = lora(partition, number)
        model = peft_model(folder, **lora)
        return model, exchange(model, message, context), number, partition, lora

    def resumed(partition, lora):
        """AdamW's state by tensor, each from the last round in which that tensor was trained."""
        adapter, state = kept.get(partition, (lora, {}))
        return state if config["train.keep-optimizer"] and adapter == lora else {}

    @app.train()
    def train(message, context):
        model, silo, number, partition, lora = prepare(message, context)
        microbatches_of_steps, examples = steps(partition, number)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        weight_decay = config["train.weight-decay"]
        optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=weight_decay)
        if (partition, number) in forgetting:
            del kept[partition]
        state = resumed(partition, lora)
        for name in state.keys() & trained.keys():
            optimizer.state[trained[name]] = copy.deepcopy(state[name])
        before = get_peft_model_state_dict(model)
        before = {name: tensor.clone() for name, tensor in before.items()}
        model.train()
        first = (number - 1) * len(microbatches_of_steps)
        ranks = getattr(model.base_model, "rankallocator", None)
        if ranks is not None and number > 1:  # what a round after the last allocation keeps
            model.peft_config["default"].rank_pattern = {
                name: (value != 0).view(-1).tolist()
                for name, value in model.base_model.model.named_parameters()
                if "lora_E" in name
            }
        for step, microbatches in enumerate(microbatches_of_steps, start=first):
            optimizer.param_groups[0]["lr"] = lr * (rate(step) if rate else 1.0)
            for batch in microbatches:
                extra = {}
                if by_tokens:
                    labels = [one["labels"][:, first_target:] for one in microbatches]
                    extra["num_items_in_batch"] = sum((own != -100).sum() for own in labels)
                loss = model(**batch, **extra).loss * (share(batch, microbatches) if share else 1)
                loss.backward()
            silo.correct_gradients()
            if bound:
                torch.nn.utils.clip_grad_norm_(trained.values(), bound)
            optimizer.step()
            if ranks is not None:
                model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
        if (partition, number) not in losing:
            own = {n: copy.deepcopy(optimizer.state[p]) for n, p in trained.items()}
            kept[partition] = lora, state | own
        seen[number, partition] = SimpleNamespace(
            before=before,
            after=None if ranks else get_peft_model_state_dict(model),
            message=message,
            model=model,
            logits=logits(model),
        )
        return silo.reply({"num-examples": examples, "train-loss": loss.item()})

    @app.evaluate()
    def evaluate(message, context):
        model, silo, number, partition, _ = prepare(message, context)
        ((batch,), *_), examples = steps(partition, 0)
        model.eval()
        with torch.no_grad():
            loss = float(model(**batch).loss)
        seen["evaluate", number, partition] = logits(model)
        return silo.reply({"num-examples": examples, "eval-loss": loss})

    return app


def run_uncut(strategy, app, initial, *, silos=SILOS, rounds=2, **grid):
    """The result of a run of Flower's own loop, and the grid it ran in."""
    random.seed(0)
    in_process = InProcessGrid(app, silos, **grid)
    return strategy.start(in_process, initial, num_rounds=rounds), in_process


def node(partition):
    return FIRST_NODE + partition
