"""The message that opens a session: an invitation to the trunk, and the silo's adapter."""

from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from flower_split.errors import WireError
from flower_split.lowrank import Orders
from flower_split.transport.invitation import Invitation


@dataclass(frozen=True, kw_only=True, eq=False)
class Opening:
    """What a message of `SplitStrategy` holds."""

    invitation: Invitation
    orders: Orders
    """What the inner strategy asks for."""
    array_key: str
    """Name of the record that the adapter is in."""
    adapter: dict[str, Tensor]
    """The silo's part, with folded factors and control variates among it."""


def read_message(message: Message) -> Opening:
    """What a message of `SplitStrategy` holds.

    Raises:
        WireError: the message is not of that form.
        TokenError: it carries no invitation.
        AdapterError: what it asks for is malformed.
    """
    content, metadata = message.content, message.metadata
    if len(content.array_records) != 1 or len(content.config_records) != 1:
        raise WireError(
            f"the message has {len(content.array_records)} ArrayRecords and "
            f"{len(content.config_records)} ConfigRecords, expected exactly one of each: the "
            "ServerApp must use SplitStrategy"
        )
    ((_, fields),) = content.config_records.items()
    ((array_key, arrays),) = content.array_records.items()
    invitation = Invitation.from_fields(
        fields, run_id=metadata.run_id, node_id=metadata.dst_node_id
    )
    return Opening(
        invitation=invitation,
        orders=Orders.from_fields(dict(fields.items())),
        array_key=array_key,
        adapter={name: torch.from_numpy(array.numpy()) for name, array in arrays.items()},
    )
