"""The offer of a delivery: what an invitation says about a model that the server delivers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from flower_split.errors import TokenError
from flower_split.transport.messages import Ticket

MAX_STREAMS = 8
"""Streams that a silo may open in a round: one, and others where it breaks."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SEPARATOR = " "


@dataclass(frozen=True, kw_only=True)
class DeliveryOffer:
    """A pack, and the tickets that open streams to fetch it."""

    pack: str
    """SHA-256 of the pack's manifest, hexadecimal."""
    tickets: tuple[Ticket, ...]
    """Each good for one stream; all of one run, node and round."""

    def to_fields(self) -> dict[str, str]:
        """The fields that join the invitation's."""
        tokens = _SEPARATOR.join(ticket.token for ticket in self.tickets)
        return {"split.pack": self.pack, "split.delivery-tokens": tokens}

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, object], *, run_id: int, node_id: int, server_round: int
    ) -> Self | None:
        """The offer in a message's config; None where the server delivers no model.

        Raises:
            TokenError: the offer is malformed.
        """
        pack, tokens = fields.get("split.pack"), fields.get("split.delivery-tokens")
        if pack is None and tokens is None:
            return None
        if not isinstance(pack, str) or not isinstance(tokens, str) or not _DIGEST.fullmatch(pack):
            raise TokenError(
                "the message's offer of the model is malformed; install the same version of "
                "flower-split on both ends"
            )
        return cls(
            pack=pack,
            tickets=tuple(
                Ticket(run_id=run_id, node_id=node_id, server_round=server_round, token=token)
                for token in tokens.split(_SEPARATOR)[:MAX_STREAMS]
            ),
        )
