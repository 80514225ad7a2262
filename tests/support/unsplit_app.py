"""A plain Flower + PEFT app on the uncut model, with an `AdapterExchange` in every silo."""

from types import SimpleNamespace

import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from in_process_grid import FIRST_NODE, InProcessGrid
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from flower_split.adapters import adapter_parameters
from flower_split.client import AdapterExchange
from flower_split.optimization.moments import load_moments, read_moments

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def peft_model(folder, *, r=4, alpha=8, rslora=False, targets=TARGETS):
    """The uncut model with PEFT's adapters, initialised by PEFT from seed 0."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=targets,
    )
    return get_peft_model(model, config)


def initial_arrays(folder, **lora):
    return ArrayRecord(get_peft_model_state_dict(peft_model(folder, **lora)))


def batches_of(partition, server_round, steps=3):
    """One microbatch a step, and the silo's weight."""
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    batches = []
    for _ in range(steps):
        ids = torch.randint(4, 15, (3, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 7:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches, 10 * (partition + 1)


def unsplit_app(
    folder,
    state_dir,
    *,
    loras=None,
    lr=5e-3,
    clip=None,
    weight_decay=0.0,
    seen=None,
    keep_moments=False,
):
    """A ClientApp that trains and evaluates the uncut model.

    Args:
        folder: The model.
        state_dir: Of all silos; None for where the node config has it.
        loras: Arguments of `peft_model` by partition; the same for all when it is a dict. Or a
            function of partition and round.
        seen: Gets, by partition and round, what each silo's model looked like after training.
        keep_moments: Whether a tensor's moments live on to the next round in which it is trained,
            while the silo's rank and alpha stay the same.
    """
    app = ClientApp()
    moments = {}
    seen = {} if seen is None else seen

    def prepare(message, context):
        partition = context.node_config["partition-id"]
        lora = loras[partition] if isinstance(loras, list) else loras or {}
        if callable(lora):
            lora = lora(partition, message.content["config"]["server-round"])
        model = peft_model(folder, **lora)
        own = None if state_dir is None else state_dir / str(partition)
        exchange = AdapterExchange(model, message, context, folder=own)
        number = message.content["config"]["server-round"]
        return model, exchange, number, partition

    @app.train()
    def train(message, context):
        model, exchange, number, partition = prepare(message, context)
        batches, examples = batches_of(partition, number)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
        named = {n: p for n, p in adapter_parameters(model) if p.requires_grad}
        scaling, rest = moments.get(partition, (exchange.scaling, {}))
        rest = rest if keep_moments and scaling == exchange.scaling else {}
        own = {n: t for n, t in rest.items() if n.rpartition("/")[0] in named}
        load_moments(optimizer, named, own)
        before = get_peft_model_state_dict(model)
        before = {name: tensor.clone() for name, tensor in before.items()}
        model.train()
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            exchange.correct_gradients()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(trained, clip)
            optimizer.step()
            optimizer.zero_grad()
        moments[partition] = (exchange.scaling, rest | read_moments(optimizer, named))
        seen[number, partition] = SimpleNamespace(
            before=before,
            after=get_peft_model_state_dict(model),
            message=message,
            model=model,
            logits=logits(model),
        )
        return exchange.reply({"num-examples": examples, "train-loss": loss.item()})

    @app.evaluate()
    def evaluate(message, context):
        model, exchange, number, partition = prepare(message, context)
        batches, examples = batches_of(partition, 0)
        model.eval()
        with torch.no_grad():
            loss = float(model(**batches[0]).loss)
        seen["evaluate", number, partition] = logits(model)
        return exchange.reply({"num-examples": examples, "eval-loss": loss})

    return app


@torch.no_grad()
def logits(model):
    """Of a fixed input."""
    was = model.training
    model.eval()
    found = model(input_ids=torch.arange(4, 14).reshape(2, 5)).logits
    model.train(was)
    return found


@torch.no_grad()
def dense_logits(folder, updates):
    """Logits of the uncut model with dense updates (by module, outputs x inputs) added to it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, update in updates.items():
        module = model.get_submodule(name.removeprefix("base_model.model."))
        module.weight += (update.T if type(module).__name__ == "Conv1D" else update).float()
    return logits(model)


def run_unsplit(strategy, app, initial, *, nodes=3, rounds=2):
    """The result of a run of Flower's own loop, and the grid it ran in."""
    grid = InProcessGrid(app, nodes)
    return strategy.start(grid, initial, num_rounds=rounds), grid


def node(partition):
    return FIRST_NODE + partition
