"""Attaching a client model to a trunk."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from transformers import PreTrainedModel

from flower_split.adapters.stand_in import tell_of_part
from flower_split.errors import AdapterError, HandshakeError, ModelError
from flower_split.remote.late_wrapping import LateWrapping
from flower_split.remote.trunk import RemoteTrunk
from flower_split.segments import TrunkSlot, watch_calls
from flower_split.transport.base import Transport


def attach_trunk(
    client_model: nn.Module,
    transport: Transport,
    *,
    trained: Collection[str] | None = None,
    trunk_parameters: bool = False,
) -> RemoteTrunk:
    """Make `client_model` compute its missing layers through `transport`.

    Works before and after `get_peft_model`, and again with another transport.

    Args:
        client_model: From `split_model` or `load_client_model`.
        transport: An open session with the trunk of the same model and cuts.
        trained: Names of the silo's adapter tensors that the session trains, as in the adapter's
            file, where those are not all.
        trunk_parameters: Whether the trunk's adapter becomes parameters of the client model, so
            that any optimizer of torch trains it, and not `SplitAdamW` alone. The trunk must allow
            it (`shares_adapter`), and the model be wrapped.

    Returns:
        The layer that stands for the trunk; `SplitAdamW` finds it by itself.

    Raises:
        ModelError: the model has no place for a trunk.
        HandshakeError: the transport's session is for another model or other cuts.
        AdapterError: the client model's adapter is not the one that the session was opened with,
            or the trunk does not give its part of it away.
    """
    owner, name, slot = find_slot(client_model)
    spec = transport.spec
    ours = (slot.fingerprint, slot.cuts.bottom_layers, slot.cuts.top_layers)
    theirs = (spec.fingerprint, spec.bottom_layers, spec.top_layers)
    for field, own, other in zip(
        ("fingerprint", "bottom_layers", "top_layers"), ours, theirs, strict=True
    ):
        if own != other:
            raise HandshakeError(
                f"the model and the transport's session differ in {field}: the model has {own!r}, "
                f"the session {other!r}"
            )
    stock = next(m for m in client_model.modules() if isinstance(m, PreTrainedModel))
    remote = slot if isinstance(slot, RemoteTrunk) else RemoteTrunk(slot)
    if remote is not slot:
        remote.late = LateWrapping(stock)
    if trunk_parameters and spec.privacy.is_on:
        raise AdapterError(
            "trunk_parameters=True brings the trunk's gradients to the silo as sums, and DP-SGD "
            "(dp.noise) clips them by example: train with SplitAdamW"
        )
    unclip(remote)
    remote.connect(
        transport,
        stock,
        outer=client_model,
        trained=trained,
        trunk_parameters=trunk_parameters,
    )
    tell_of_part(client_model, remote.trunk_gradient, partial(_trained_elsewhere, remote))
    if remote is slot:
        return remote
    remote.train(slot.training)
    setattr(owner, name, remote)
    watch_calls(client_model, slot.family, remote.called_with)
    return remote


def unclip(remote: RemoteTrunk) -> None:
    """Clip no examples any more: nothing of DP-SGD is left at the silo's layers."""
    if remote.clipping is not None:
        remote.clipping.close()
    remote.clipping = None


@contextmanager
def unclipped(remote: RemoteTrunk) -> Iterator[None]:
    """For as long as a session lasts, after which nothing of DP-SGD is left."""
    try:
        yield
    finally:
        unclip(remote)


def _trained_elsewhere(remote: RemoteTrunk) -> int:
    """Elements of the trunk's adapter that are no parameters of the client model."""
    spec = remote.transport.spec
    if spec.purpose != "train" or not remote.adapter.is_there or remote.own is not None:
        return 0
    return sum(math.prod(shape) for _, shape in remote.adapter.held)


def find_slot(model: nn.Module) -> tuple[nn.Module, str, TrunkSlot | RemoteTrunk]:
    """The trunk's place in a client model: the list that has it, its name there, and what is there.

    Raises:
        ModelError: the model has no place for a trunk.
    """
    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, (TrunkSlot, RemoteTrunk)):
                return owner, name, child
    raise ModelError(
        "this model has no place for a trunk: it was not made by split_model or load_client_model"
    )
