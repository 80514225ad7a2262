"""`AdapterExchange`: a silo's side of the LoRA strategies, for any PEFT model."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from flower_split.adapters import (
    adapter_parameters,
    fitted,
    fold,
    load_state,
    own_scaling,
    read_state,
    train_parts,
)
from flower_split.client.kept_state import Generation, KeptState
from flower_split.client.node_config import NodeConfig
from flower_split.client.state_folder import StateFolder
from flower_split.errors import AdapterError
from flower_split.lowrank import (
    CONTROL,
    RECORD,
    Orders,
    Scaling,
    part_of,
    scaling_fields,
    split_folded,
)
from flower_split.optimization.corrections import Corrections

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
        self.model = model
        self.orders = Orders.from_fields(dict(config.items()))
        self._message = message
        self._trains = message.metadata.message_type.split(".")[0] == "train"
        self._round = int(str(config.get("server-round", 0)))
        run = str(message.metadata.run_id)
        self._kept = KeptState(folder or _kept_folder(context, run))
        self._load({name: torch.from_numpy(array.numpy()) for name, array in arrays.items()})

    @property
    def scaling(self) -> Scaling:
        """Of the silo's own adapter."""
        return self._scaling

    def correct_gradients(self) -> None:
        """Add FedProx's and SCAFFOLD's terms, where the strategy asks for them.

        Once before every optimizer step, and before the gradients are clipped.
        """
        self._corrections.apply()

    def records(self) -> RecordDict:
        """What a reply says of the adapter: the tensors that were trained, and how they are scaled.

        What never leaves the silo is written to its folder first.

        Raises:
            StateError: it cannot be written.
        """
        state = read_state(self.model)
        sent = {
            name: tensor
            for name, tensor in state.items()
            if part_of(name) in self.orders.trains and name not in self.orders.keeps
        }
        kept = {name: state[name] for name in self.orders.keeps if name in state}
        if self.orders.controlled:
            kept |= {CONTROL + name: own for name, own in self._corrections.next_own().items()}
            sent |= {CONTROL + name: part for name, part in self._corrections.change().items()}
        if kept:
            self._kept.save(
                Generation(server_round=self._round, scale=self._scaling.factor, tensors=kept)
            )
        return RecordDict(
            {
                self._array_key: ArrayRecord(sent),
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

    def _load(self, received: dict[str, Tensor]) -> None:
        scaling = own_scaling(self.model)
        if scaling is None:
            raise AdapterError("the model has no LoRA adapter: wrap it with peft.get_peft_model")
        self._scaling = scaling
        common = {n.removeprefix(CONTROL): t for n, t in received.items() if n.startswith(CONTROL)}
        trained, folded = split_folded(
            {n: t for n, t in received.items() if not n.startswith(CONTROL)}
        )
        generation = None
        if self.orders.keeps or self.orders.controlled:
            # What this round's training left is what an evaluation after it works with.
            generation = self._kept.newest(self._round + (0 if self._trains else 1))
        state = fitted(self.model, trained, self.orders.scale or scaling.factor)
        if generation is not None:
            own = {n: t for n, t in generation.tensors.items() if n in self.orders.keeps}
            state |= fitted(self.model, own, generation.scale)
        held = {name for name, _ in adapter_parameters(self.model)}
        lost = (self.orders.keeps & held) - state.keys()
        if lost:
            raise AdapterError(
                f"{len(lost)} tensors that this silo keeps for itself (first: {min(lost)}) are no "
                f"longer in {self._kept.folder}: the next round starts them anew"
            )
        if generation is None and self.orders.keeps and self._round > 1:
            logger.info("nothing kept in %s: starting from the server's", self._kept.folder)
        load_state(self.model, state)
        fold(self.model, folded)
        train_parts(self.model, self.orders.trains)
        controls = generation.tensors if generation is not None else {}
        self._corrections = Corrections(
            {n: p for n, p in adapter_parameters(self.model) if p.requires_grad},
            proximal_mu=self.orders.proximal_mu,
            common=common if self.orders.controlled and self._trains else None,
            own={n.removeprefix(CONTROL): t for n, t in controls.items() if CONTROL in n},
        )


def _kept_folder(context: Context, run: str) -> Path:
    node = NodeConfig.read(context.node_config)
    return StateFolder.of_node(node).of(run, node.name(context.node_id), "adapter")
