"""A ClientApp that trains the whole model's LoRA adapter with stock PyTorch and PEFT."""

import itertools

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flower_split import SplitConfig
from flower_split.client import AdapterExchange
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from unsplit_lora.model import adapted_model

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = SplitConfig.from_run_config(context.run_config)
    model = adapted_model(config, context.node_config)
    exchange = AdapterExchange(model, message, context)
    data = silo_batches(config, NodeConfig.read(context.node_config))
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.train.learning_rate,
    )
    model.train()
    batches = itertools.cycle(data.train(message.content["config"]["server-round"]))
    for batch in itertools.islice(batches, config.train.local_steps):
        loss = model(**batch).loss
        loss.backward()
        exchange.correct_gradients()
        optimizer.step()
        optimizer.zero_grad()
    return exchange.reply({"num-examples": data.num_train, "train-loss": loss.item()})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    config = SplitConfig.from_run_config(context.run_config)
    model = adapted_model(config, context.node_config)
    exchange = AdapterExchange(model, message, context)
    data = silo_batches(config, NodeConfig.read(context.node_config))
    model.eval()
    with torch.no_grad():
        losses = [model(**batch).loss.item() for batch in data.held_out()]
    loss = sum(losses) / len(losses)
    return exchange.reply({"num-examples": data.num_held_out, "eval-loss": loss})
