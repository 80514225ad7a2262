"""`open_session`: from a message of `SplitStrategy` to a model that computes through the trunk."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor, nn

from flower_split.adapters import AdapterRound, adapter_parameters, fold, train_parts
from flower_split.client.ledger import SessionLedger, session_ledger
from flower_split.client.model_pool import borrowed_model
from flower_split.client.model_source import ModelSource
from flower_split.client.model_traces import ModelTraces
from flower_split.client.node_config import NodeConfig
from flower_split.client.noise_account import NoiseAccount, noise_account
from flower_split.client.state.folder import StateFolder
from flower_split.client.state.resuming import Resuming
from flower_split.client.statistics import SessionCost
from flower_split.client.step_account import StepAccount, step_account
from flower_split.config.sections import SplitConfig
from flower_split.errors import AdapterError, WireError
from flower_split.lowrank import Instructions, Scaling
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.remote import attach_trunk, session_spec
from flower_split.remote.attach import find_slot, unclipped
from flower_split.segments import Cuts, held_by_trunk
from flower_split.tls.credentials import ClientTls
from flower_split.transport.arrays import read_array
from flower_split.transport.base import Connect, Transport
from flower_split.transport.invitation import Invitation
from flower_split.transport.records import miscounted


@dataclass(frozen=True, kw_only=True, eq=False)
class Opening:
    """What a message of `SplitStrategy` says and brings."""

    invitation: Invitation
    instructions: Instructions
    """What the inner strategy asks for."""
    array_key: str
    """Name of the record that the adapter is in."""
    adapter: dict[str, Tensor]
    """The silo's part, with folded factors and control variates among it."""


def read_message(message: Message) -> Opening:
    """Read a message of `SplitStrategy`.

    Raises:
        WireError: the message is not of that form.
        TokenError: it carries no invitation.
        AdapterError: what it asks for is malformed.
    """
    content, metadata = message.content, message.metadata
    problem = miscounted(
        "the message",
        {"ArrayRecord": content.array_records, "ConfigRecord": content.config_records},
    )
    if problem:
        raise WireError(f"{problem}: the ServerApp must use SplitStrategy")
    ((_, fields),) = content.config_records.items()
    ((array_key, arrays),) = content.array_records.items()
    invitation = Invitation.from_fields(
        fields, run_id=metadata.run_id, node_id=metadata.dst_node_id
    )
    return Opening(
        invitation=invitation,
        instructions=Instructions.from_fields(dict(fields.items())),
        array_key=array_key,
        adapter={name: torch.from_numpy(read_array(name, array)) for name, array in arrays.items()},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenSession:
    """What an open session works with."""

    model: nn.Module
    """With the trunk attached, and the adapter as the strategy wants it for this round."""
    transport: Transport
    adapter: AdapterRound
    """The silo's part of the adapter."""
    scaling: Scaling | None
    """Of the silo's adapter; None where the method is not plain LoRA."""
    resuming: Resuming
    begun: ModelTraces
    """The model as it was loaded."""
    ledger: SessionLedger | None
    """The account of what leaves; None where the silo keeps none."""
    noise: NoiseAccount | None
    """The account of the noise; None where nothing gets any."""
    steps: StepAccount | None
    """The account of the steps of DP-SGD; None without it."""

    def check_sent(self) -> None:
        """Raise `AdapterError` where something was trained that no reply carries."""
        ModelTraces.of(self.model).check_sent(self.begun)


@contextmanager
def open_session(
    opening: Opening,
    config: SplitConfig,
    node: NodeConfig,
    source: ModelSource,
    *,
    device: torch.device,
    silo: str,
    seed: int,
    tls: ClientTls | None,
    connect: Connect,
    cost: SessionCost,
    trunk_parameters: bool = False,
) -> Iterator[OpenSession]:
    """A session, closed again on leaving, whether it was complete or not.

    Args:
        opening: The message.
        config: The run's configuration.
        node: The silo's own.
        source: Where the model comes from.
        device: Where it computes.
        silo: The silo's name.
        seed: Of the trunk's dropout.
        tls: For the trunk's channel; None for none, which is allowed by now.
        connect: Opens the session at the trunk.
        cost: The session's; gets its share of the model, and when it was loaded and connected.
        trunk_parameters: Whether the trunk's adapter becomes parameters of the model.

    Raises:
        ModelError, AdapterError: the model cannot be loaded, or the adapter does not fit it.
        StateError: the state to resume from cannot be read.
        TrunkError: the trunk refused the session, or is gone.
    """
    invitation, instructions = opening.invitation, opening.instructions
    own = trunk_parameters and invitation.purpose == "train"
    if own and (instructions.proximal_mu or instructions.controlled):
        raise AdapterError(
            "FedProx and SCAFFOLD correct the trunk's gradients at the trunk, which "
            "trunk_parameters=True would leave out: train with session.optimizer"
        )
    lora = node.own_lora(config.lora, config.peft)
    cut = node.own_cut(config.split)
    with borrowed_model(config, source, device, lora, cut) as held:
        model = held.model
        # A silo whose layers have no adapter (both cuts 0) still agrees with the trunk on one.
        scaling = held.plan.scaling
        cost.parameter_share = held.share
        cost.loaded = time.monotonic()
        resuming = Resuming.of(
            config,
            StateFolder.of_node(node),
            invitation,
            silo,
            model,
            instructions=instructions,
            scaling=scaling,
        )
        spec = session_spec(
            model,
            plan=held.plan,
            trunk_adapters=config.trunk.adapters,
            purpose=invitation.purpose,
            wire=config.wire,
            optimizer=OptimizerSettings.of_training(
                config.train, shared=config.trunk.adapters == "shared"
            ),
            privacy=PrivacySettings.of_training(config.dp, config.train),
            seed=seed,
            silo=silo,
            session_states=resuming.offers,
            pack=source.pack,
        )
        transport = connect(
            invitation.address,
            spec,
            invitation.ticket,
            tls=tls,
            plaintext=tls is None,
            connect_timeout=config.trunk.connect_timeout,
            patience=max(0.0, cost.started + invitation.seconds - time.monotonic()),
        )
        try:
            cost.connected = time.monotonic()
            resuming.begin(transport.resumed)
            adapter = AdapterRound(
                model,
                instructions,
                scale=None if scaling is None else scaling.factor,
                trains=invitation.purpose == "train",
            )
            received = own_part(opening.adapter, model, config)
            fold(model, adapter.load(received, resuming.personal))
            train_parts(model, instructions.trains)
            trained = {name for name, part in adapter_parameters(model) if part.requires_grad}
            remote = attach_trunk(model, transport, trained=trained, trunk_parameters=own)
            remote.correct = adapter.correct_gradients
            remote.own_autocast = config.train.autocast
            if resuming.resumes_moments:
                remote.adapter.is_stepped_with(resuming)
            states, origin = StateFolder.of_node(node), _origin(invitation)
            with (
                unclipped(remote),
                session_ledger(node, silo, invitation, spec, received) as ledger,
                noise_account(config.wire, states, origin, silo) as noise,
                step_account(
                    config.dp,
                    states,
                    origin,
                    silo,
                    expected=spec.privacy.expected_batch,
                    trains=invitation.purpose == "train",
                ) as steps,
            ):
                if ledger is not None:
                    transport.account = ledger.note_tensors
                if noise is not None:
                    remote.border.account = noise.leaving
                yield OpenSession(
                    model=model,
                    transport=transport,
                    adapter=adapter,
                    scaling=scaling,
                    resuming=resuming,
                    begun=held.begun,
                    ledger=ledger,
                    noise=noise,
                    steps=steps,
                )
        finally:
            transport.close()


def own_part(
    received: Mapping[str, Tensor], model: nn.Module, config: SplitConfig
) -> Mapping[str, Tensor]:
    """What of a message's adapter is of the silo's layers, where it has chosen how many it holds.

    The server learns that only as the session is opened, and sends all that the silo may hold.

    Args:
        received: With folded factors and control variates among it.
        model: The client model.
        config: The run's.
    """
    if not config.split.leaves_choice:
        return received
    layers, _, slot = find_slot(model)
    path = next(name for name, module in model.named_modules() if module is layers)
    most = Cuts(
        bottom_layers=config.split.most_bottom,
        top_layers=config.split.most_top,
        num_layers=slot.cuts.num_layers,
    )
    return {
        name: tensor
        for name, tensor in received.items()
        if not held_by_trunk(name, path, slot.cuts) or held_by_trunk(name, path, most)
    }


def _origin(invitation: Invitation) -> str:
    return invitation.origin_run_id or str(invitation.ticket.run_id)
