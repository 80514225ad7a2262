"""The invitation: what a Flower message tells a silo about its session at the trunk.

It travels as scalar fields of the message's own config, all named `split.…`. The silo shows in
its reply that it had the token, by a keyed hash, and never sends the token itself back.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from flower_split.config.address import Address
from flower_split.errors import ConfigError, TokenError, WireError
from flower_split.tls.pem import MAX_PEM_BYTES, parse_certificates
from flower_split.transport.messages import Purpose, Ticket
from flower_split.transport.state_tags import LONGEST_SILO_NAME

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


PROOF = "proof"

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{0,64}")


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """Where the trunk is, and the ticket that opens one session there."""

    address: str
    """`host:port` of the trunk's server."""
    ticket: Ticket
    purpose: Purpose
    num_rounds: int
    """Federated rounds of the whole run, for learning-rate schedules."""
    origin_run_id: str = ""
    """Names what silos keep from round to round: the id of the run, or of the run that it resumes;
    letters, digits, `-` and `_`."""
    last_training: bool = False
    """Whether no training follows this session, so that the silo's optimizer state can go."""
    sample: bool = False
    """Whether the silo is asked to continue the run config's sample prompt."""
    tls: bool = True
    """Whether the trunk's channel is TLS."""
    ca: str = ""
    """PEM of the CA that signed the trunk's certificate; empty for the silo's own roots."""
    seconds: float = 3600.0
    """Seconds that the round lasted at most when the message was sent."""
    offer: DeliveryOffer | None = None
    """The model, where the server delivers it."""

    def to_fields(self) -> dict[str, str | int | float | bool]:
        """The fields that join the message's config; run and node are in the message itself."""
        return {
            "split.address": self.address,
            "split.token": self.ticket.token,
            "split.round": self.ticket.server_round,
            "split.purpose": self.purpose,
            "split.num-rounds": self.num_rounds,
            "split.lineage": self.origin_run_id,
            "split.last-training": self.last_training,
            "split.sample": self.sample,
            "split.tls": self.tls,
            "split.ca": self.ca,
            "split.seconds": self.seconds,
            **({} if self.offer is None else self.offer.to_fields()),
        }

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, object], *, run_id: int, node_id: int
    ) -> "Invitation":
        """The invitation in a message's config.

        Raises:
            TokenError: the config carries none, or a malformed one.
            WireError: the address or the CA is malformed.
        """
        address, token = fields.get("split.address"), fields.get("split.token")
        server_round, purpose = fields.get("split.round"), fields.get("split.purpose")
        num_rounds, sample = fields.get("split.num-rounds"), fields.get("split.sample")
        origin_run_id, last_training = (
            fields.get("split.lineage"),
            fields.get("split.last-training"),
        )
        tls, ca, seconds = (fields.get(f"split.{name}") for name in ("tls", "ca", "seconds"))
        if (
            not isinstance(address, str)
            or not isinstance(token, str)
            or not isinstance(server_round, int)
            or not isinstance(num_rounds, int)
            or purpose not in ("train", "evaluate")
            or not isinstance(origin_run_id, str)
            or _RUN_ID.fullmatch(origin_run_id) is None
            or not isinstance(last_training, bool)
            or not isinstance(tls, bool)
            or not isinstance(ca, str)
            or not isinstance(seconds, (int, float))
            or not math.isfinite(seconds)
        ):
            raise TokenError(
                "the message carries no invitation to a trunk: the ServerApp must send it through "
                "SplitStrategy, in the same version of flower_split"
            )
        _check_address(address)
        _check_ca(ca)
        ticket = Ticket(run_id=run_id, node_id=node_id, server_round=server_round, token=token)
        return cls(
            address=address,
            ticket=ticket,
            purpose="train" if purpose == "train" else "evaluate",
            num_rounds=num_rounds,
            origin_run_id=origin_run_id,
            last_training=last_training,
            sample=sample is True,
            tls=tls,
            ca=ca,
            seconds=float(seconds),
            offer=DeliveryOffer.from_fields(
                fields, run_id=run_id, node_id=node_id, server_round=server_round
            ),
        )

    def proof(self) -> str:
        """Hexadecimal HMAC-SHA256, under the token, of what the session is for."""
        ticket = self.ticket
        subject = f"{ticket.run_id}/{ticket.node_id}/{ticket.server_round}/{self.purpose}"
        return hmac.new(ticket.token.encode(), subject.encode(), hashlib.sha256).hexdigest()

    def is_proven_by(self, proof: object) -> bool:
        """Whether `proof` was made by someone who had the token."""
        return isinstance(proof, str) and hmac.compare_digest(proof.encode(), self.proof().encode())


def _check_address(address: str) -> None:
    try:
        Address.parse(address, what="the trunk's address in the message")
    except ConfigError as error:
        raise WireError(str(error)) from error


def _check_ca(ca: str) -> None:
    if not ca:
        return
    if len(ca) > MAX_PEM_BYTES or not ca.isascii():
        raise WireError(f"the trunk's CA in the message is no PEM text of {MAX_PEM_BYTES} bytes")
    try:
        parse_certificates(ca.encode(), "the trunk's CA in the message")
    except ConfigError as error:
        raise WireError(str(error)) from error


SPLIT_RECORD = "split"
"""Name of the ConfigRecord of flower_split's own: in a reply it has the proof and the session's
statistics, in a query the question for the silo's name, and in the reply to it the answer."""

QUESTION, ANSWER = "tell-silo", "silo"
"""Fields of it in a query and in the reply to it."""


def read_name(fields: Mapping[str, object]) -> str:
    """The name in an answer; empty when there is none that a silo may have."""
    name = fields.get(ANSWER)
    return name if isinstance(name, str) and len(name) <= LONGEST_SILO_NAME else ""
