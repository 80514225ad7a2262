"""`AdapterExchange`: a silo's side of the LoRA strategies, for any PEFT model."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from flower_split.adapters import AdapterRound, Kept, fold, own_scaling, train_parts
from flower_split.client.node_config import NodeConfig
from flower_split.client.state.folder import StateFolder
from flower_split.client.state.kept_state import Generation, KeptState
from flower_split.errors import AdapterError
from flower_split.lowrank import RECORD, Instructions, Scaling, scaling_fields

logger = logging.getLogger(__name__)

Metric = int | float | list[int] | list[float]


class AdapterExchange:
    """Loads what a message brings into a PEFT model, and makes the reply after training.

    ::

        @app.train()
        def train(message, context):
            exchange = AdapterExchange(model, message, context)
            for batch in batches:
                model(**batch).loss.backward()
                exchange.correct_gradients()
                optimizer.step()
                optimizer.zero_grad()
            return exchange.reply({"num-examples": len(data), "train-loss": loss})

    The optimizer is to be made after it, of the parameters that then require gradients. A message
    of a strategy that knows nothing of LoRA loads and returns all tensors of the adapter.

    Args:
        model: With one LoRA adapter, of one rank and alpha in all modules. Whatever its tensors
            held is overwritten.
        message: A train or evaluate message.
        context: The ClientApp's; `state-dir` and `silo` of its node config say where and under
            which name the silo keeps what never leaves it.
        folder: For that, in place of the folder from the node config.

    Raises:
        AdapterError: the tensors do not fit the model, or the silo's own ones are lost.
    """

    def __init__(
        self, model: nn.Module, message: Message, context: Context, *, folder: Path | None = None
    ) -> None:
        content = message.content
        if len(content.array_records) != 1 or len(content.config_records) != 1:
            raise AdapterError(
                f"the message has {len(content.array_records)} ArrayRecords and "
                f"{len(content.config_records)} ConfigRecords, expected exactly one of each"
            )
        ((self._array_key, arrays),) = content.array_records.items()
        (config,) = content.config_records.values()
        scaling = own_scaling(model)
        if scaling is None:
            raise AdapterError("the model has no LoRA adapter: wrap it with peft.get_peft_model")
        self.model = model
        self.instructions = Instructions.from_fields(dict(config.items()))
        self._scaling = scaling
        self._message = message
        self._trains = message.metadata.message_type.split(".")[0] == "train"
        self._round = int(str(config.get("server-round", 0)))
        run = str(message.metadata.run_id)
        self._kept = KeptState(folder or _kept_folder(context, run))
        self._adapter = AdapterRound(
            model, self.instructions, scale=scaling.factor, trains=self._trains
        )
        received = {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}
        fold(model, self._adapter.load(received, self._last_kept()))
        train_parts(model, self.instructions.trains)

    @property
    def scaling(self) -> Scaling:
        """Of the silo's own adapter."""
        return self._scaling

    def correct_gradients(self) -> None:
        """Add FedProx's and SCAFFOLD's terms, where the strategy asks for them.

        Once before every optimizer step, and before the gradients are clipped.
        """
        self._adapter.correct_gradients()

    def records(self) -> RecordDict:
        """What a reply says of the adapter: the tensors that were trained, and how they are scaled.

        What never leaves the silo is written to its folder first.

        Raises:
            StateError: it cannot be written.
        """
        kept = self._adapter.kept()
        if kept.tensors:
            self._kept.save(
                Generation(server_round=self._round, scale=kept.scale, tensors=dict(kept.tensors))
            )
        return RecordDict(
            {
                self._array_key: ArrayRecord(self._adapter.sent()),
                RECORD: ConfigRecord(dict(scaling_fields(self._scaling).items())),
            }
        )

    def reply(self, metrics: Mapping[str, Metric]) -> Message:
        """The reply, with `num-examples` among its metrics; of an evaluation without tensors.

        Raises:
            StateError: what never leaves the silo cannot be written to its folder.
        """
        content = self.records() if self._trains else RecordDict()
        content["metrics"] = MetricRecord(dict(metrics))
        return Message(content, reply_to=self._message)

    def _last_kept(self) -> Kept | None:
        """What the silo keeps of the round before, or of this one in its evaluation."""
        if not self.instructions.keeps_something:
            return None
        found = self._kept.newest(self._round + (0 if self._trains else 1))
        if found is None:
            if self._round > 1:
                logger.info("nothing kept in %s: starting from the server's", self._kept.folder)
            return None
        return Kept(tensors=found.tensors, scale=found.scale)


def _kept_folder(context: Context, run: str) -> Path:
    node = NodeConfig.read(context.node_config)
    return StateFolder.of_node(node).of(run, node.name(context.node_id), "adapter")
