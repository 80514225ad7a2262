"""`AdapterExchange`: a silo's side of the LoRA strategies, for any PEFT model."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from flower_split.adapters import (
    AdapterRound,
    PersonalTensors,
    SessionState,
    adapter_parameters,
    fold,
    own_scaling,
    train_parts,
)
from flower_split.client.node_config import NodeConfig
from flower_split.client.state.folder import StateFolder
from flower_split.client.state.silo_adapter import SiloAdapter
from flower_split.client.state.state_file import round_tag
from flower_split.client.state.store import StateStore
from flower_split.errors import AdapterError
from flower_split.lowrank import LORA_RECORD, Instructions, Scaling, scaling_fields
from flower_split.private_files import resolved
from flower_split.transport.arrays import read_array
from flower_split.transport.records import miscounted

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
            which name the silo's personal tensors are saved.
        folder: For them, in place of the folder from the node config; of this silo alone.

    Raises:
        AdapterError: the tensors do not fit the model, or the silo's personal ones are lost.
    """

    def __init__(
        self, model: nn.Module, message: Message, context: Context, *, folder: Path | None = None
    ) -> None:
        content = message.content
        problem = miscounted(
            "the message",
            {"ArrayRecord": content.array_records, "ConfigRecord": content.config_records},
        )
        if problem:
            raise AdapterError(problem)
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
        self._resumed = ""
        self._store = self._open_store(context, folder)
        self._adapter = AdapterRound(
            model, self.instructions, scale=scaling.factor, trains=self._trains
        )
        received = {
            name: torch.from_numpy(read_array(name, array)) for name, array in arrays.items()
        }
        fold(model, self._adapter.load(received, self._resume()))
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

        The silo's personal tensors are saved first.

        Raises:
            StateError: they cannot be saved, or are not finite.
        """
        personal = self._adapter.personal()
        if personal.tensors:
            self._store.save(
                round_tag(self._round),
                self._round,
                SessionState(personal=personal, scaling=self._scaling),
                after=self._resumed,
            )
        return RecordDict(
            {
                self._array_key: ArrayRecord(self._adapter.sent()),
                LORA_RECORD: ConfigRecord(dict(scaling_fields(self._scaling).items())),
            }
        )

    def reply(self, metrics: Mapping[str, Metric]) -> Message:
        """The reply, with `num-examples` among its metrics; of an evaluation without tensors.

        Raises:
            StateError: the silo's personal tensors cannot be saved, or are not finite.
        """
        content = self.records() if self._trains else RecordDict()
        content["metrics"] = MetricRecord(dict(metrics))
        return Message(content, reply_to=self._message)

    def _open_store(self, context: Context, folder: Path | None) -> StateStore:
        adapter = SiloAdapter(
            parameters=dict(adapter_parameters(self.model)),
            scaling=self._scaling,
            instructions=self.instructions,
        )
        if folder is None:
            node = NodeConfig.read(context.node_config)
            run, silo = str(self._message.metadata.run_id), node.name(context.node_id)
            states = StateFolder.of_node(node)
            own = states.of(run, silo, personal=True)
            if self.instructions.has_personal:
                states.sweep(sparing=own)
            return StateStore(own, adapter, root=states.root)
        return StateStore(resolved(folder), adapter)

    def _resume(self) -> PersonalTensors | None:
        """The silo's personal tensors of the round before, or of this one in its evaluation."""
        if not self.instructions.has_personal:
            return None
        found = self._store.newest(self._round + (0 if self._trains else 1))
        if found is None:
            if self._round > 1:
                logger.info("no state in %s: starting from the server's", self._store.folder)
            return None
        self._resumed = found.tag
        return found.state.personal
