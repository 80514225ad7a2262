"""The whole model, trained without a split: with plain PyTorch and PEFT."""

import itertools
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM

from flower_split import SplitConfig
from flower_split.adapters import fold, initial_state, load_state, train_parts
from flower_split.client import AdapterExchange
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import SiloBatches, silo_batches
from flower_split.config.sections import LoraSettings
from flower_split.data import TokenizedDataset, train_batches
from flower_split.segments import load_skeleton, resolve_source
from flower_split.training import EvalMetrics, evaluate

Batch = dict[str, Tensor]

app = ClientApp()


@lru_cache(maxsize=4)
def adapted_model(name: str, lora: LoraSettings) -> PeftModel:
    """One model a process: whoever uses it loads an adapter of their own into it first."""
    source = resolve_source(name)
    model = AutoModelForCausalLM.from_pretrained(
        source.repository or source.folder, dtype=torch.float32
    )
    target_modules = list(lora.target_modules)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=target_modules[0] if len(target_modules) == 1 else target_modules,
    )
    return get_peft_model(model, settings)


def take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    max_grad_norm: float,
    before_step: Callable[[], None] = lambda: None,
) -> float:
    """A step for every batch; the loss of the last one."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        before_step()
        clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return float(loss)


def adamw(model: nn.Module, config: SplitConfig) -> torch.optim.AdamW:
    """Of the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=config.train.learning_rate, weight_decay=0.0)


def _silo(message: Message, context: Context) -> tuple[SplitConfig, AdapterExchange, SiloBatches]:
    """The run's configuration, the silo's model with what came in the message, and its data."""
    config = SplitConfig.from_run_config(context.run_config)
    node = NodeConfig.read(context.node_config)
    model = adapted_model(config.model.name, node.own_lora(config.lora))
    return config, AdapterExchange(model, message, context), silo_batches(config, node)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One silo's round."""
    config, exchange, data = _silo(message, context)
    one_pass = data.train(int(str(message.content["config"]["server-round"])))
    batches = itertools.chain.from_iterable(itertools.repeat(one_pass))
    loss = take_steps(
        exchange.model,
        adamw(exchange.model, config),
        itertools.islice(batches, config.train.local_steps),
        config.train.max_grad_norm,
        exchange.correct_gradients,
    )
    return exchange.reply({"num-examples": data.num_train, "train-loss": loss})


@app.evaluate()
def evaluate_silo(message: Message, context: Context) -> Message:
    """A silo's loss on its held-out data."""
    _, exchange, data = _silo(message, context)
    loss = evaluate(exchange.model, data.held_out()).loss
    return exchange.reply({"num-examples": data.num_held_out, "eval-loss": loss})


def train_central(config: SplitConfig, silos: int) -> list[list[EvalMetrics]]:
    """LoRA on the pooled data, one AdamW throughout: as many steps as all silos together.

    Returns:
        What was found on every silo's held-out data, before the first round and after each.
    """
    model = adapted_model(config.model.name, config.lora)
    load_state(
        model, initial_state(load_skeleton(config.model.name), config.lora, seed=config.seed)
    )
    fold(model, {})
    train_parts(model, frozenset("AB"))
    nodes = [NodeConfig(partition_id=silo, num_partitions=silos) for silo in range(silos)]
    data = [silo_batches(config, node) for node in nodes]
    pooled = TokenizedDataset(
        sequences=tuple(ids for one in data for ids in one.silo.train.sequences),
        prompt_lengths=tuple(n for one in data for n in one.silo.train.prompt_lengths),
        pad_id=data[0].silo.train.pad_id,
    )
    passes = train_batches(
        pooled, config.train.batch_size, seed=config.seed, silo=0, round_number=0
    )
    batches = itertools.chain.from_iterable(itertools.repeat(passes))
    optimizer = adamw(model, config)
    found = [[evaluate(model, one.held_out()) for one in data]]
    for _ in range(config.num_server_rounds):
        steps = itertools.islice(batches, silos * config.train.local_steps)
        take_steps(model, optimizer, steps, config.train.max_grad_norm)
        found.append([evaluate(model, one.held_out()) for one in data])
    return found
