"""The session host: what a round needs of whoever hosts the trunk."""

from typing import Protocol

from flower_split.server.starting import SessionOutcome, TrunkStart
from flower_split.strategies.hosting.adapter_parts import AdapterParts
from flower_split.transport.invitation import DeliveryOffer
from flower_split.transport.messages import Purpose, Ticket


class SessionHost(Protocol):
    """What a round needs of the host of the trunk."""

    @property
    def address(self) -> str:
        """`host:port` that silos connect to."""
        ...

    @property
    def origin_run_id(self) -> str:
        """Names what silos keep from round to round; empty for the run's own id."""
        ...

    @property
    def parts(self) -> AdapterParts:
        """Which adapter tensors the inner strategy sees, and which of them are the trunk's."""
        ...

    @property
    def uses_tls(self) -> bool:
        """Whether silos connect over TLS."""
        ...

    @property
    def ca(self) -> str:
        """PEM of the CA that silos are told to trust; empty for their own roots."""
        ...

    def issue(
        self, run_id: int, node_id: int, server_round: int, purpose: Purpose, *, seconds: float
    ) -> Ticket:
        """A new ticket, good for one session within the next `seconds`."""
        ...

    def offer(
        self, run_id: int, node_id: int, server_round: int, *, seconds: float
    ) -> DeliveryOffer | None:
        """The model, and tickets to fetch it within `seconds`; None where silos have their own."""
        ...

    def prepare(self, ticket: Ticket, start: TrunkStart) -> None:
        """What the ticket's session starts from and is to do."""
        ...

    def collect(self, ticket: Ticket) -> SessionOutcome | None:
        """What the ticket's session leaves; None unless it was finished."""
        ...

    def silo_of(self, ticket: Ticket) -> str:
        """The name under which the ticket's node opened its last session."""
        ...

    def is_broken(self, ticket: Ticket) -> bool:
        """Whether the ticket's session ended without having been finished."""
        ...

    def is_finished(self, ticket: Ticket) -> bool:
        """Whether the ticket's session was finished, and `collect` has not been called for it."""
        ...

    def accept(self, ticket: Ticket) -> None:
        """The reply counts: the silo's next session resumes from what this one has left."""
        ...

    def discard(self, ticket: Ticket) -> None:
        """End the ticket's session if it is open, and make the ticket worthless."""
        ...
