"""The message that opens a session: an invitation to the trunk, and the silo's adapter."""

import torch
from flwr.app import Message
from torch import Tensor

from flower_split.errors import WireError
from flower_split.transport.invitation import Invitation


def read_message(message: Message) -> tuple[Invitation, dict[str, Tensor]]:
    """What a message of `SplitStrategy` holds.

    Raises:
        WireError: the message is not of that form.
        TokenError: it carries no invitation.
    """
    content, metadata = message.content, message.metadata
    if len(content.array_records) != 1 or len(content.config_records) != 1:
        raise WireError(
            f"the message has {len(content.array_records)} ArrayRecords and "
            f"{len(content.config_records)} ConfigRecords, expected exactly one of each: the "
            "ServerApp must use SplitStrategy"
        )
    ((_, fields),) = content.config_records.items()
    ((_, arrays),) = content.array_records.items()
    invitation = Invitation.from_fields(
        fields, run_id=metadata.run_id, node_id=metadata.dst_node_id
    )
    return invitation, {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}
