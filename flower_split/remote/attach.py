"""Attaching a client model to a trunk."""

from torch import nn

from flower_split.errors import HandshakeError, ModelError
from flower_split.remote.trunk import RemoteTrunk
from flower_split.segments import TrunkSlot, watch_calls
from flower_split.transport.base import Transport


def attach_trunk(client_model: nn.Module, transport: Transport) -> RemoteTrunk:
    """Make `client_model` compute its missing layers through `transport`.

    Works before and after `get_peft_model`, and again with another transport.

    Args:
        client_model: From `split_model` or `load_client_model`.
        transport: An open session with the trunk of the same model and cuts.

    Returns:
        The layer that stands for the trunk; `SplitAdamW` finds it by itself.

    Raises:
        ModelError: the model has no place for a trunk.
        HandshakeError: the transport's session is for another model or other cuts.
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
    if isinstance(slot, RemoteTrunk):
        slot.connect(transport)
        return slot
    remote = RemoteTrunk(slot, transport)
    remote.train(slot.training)
    setattr(owner, name, remote)
    watch_calls(client_model, slot.family, remote.called_with)
    return remote


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
