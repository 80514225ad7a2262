"""The ticket records of one trunk, from the preparation of a ticket until it is discarded."""

from flower_split.errors import SequenceError
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import TicketRecord, TrunkStart
from flower_split.transport.messages import Ticket


class TicketRecords:
    """One record for every ticket that was prepared. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._records: dict[str, TicketRecord] = {}

    def find(self, ticket: Ticket | None) -> TicketRecord | None:
        """The record of `ticket`; None where it was not prepared, or there is no ticket."""
        return None if ticket is None else self._records.get(ticket.token)

    def prepare(self, ticket: Ticket, start: TrunkStart) -> TicketRecord:
        """The record of a new ticket, whose session is to start from `start`.

        Raises:
            SequenceError: the ticket was prepared before, and not discarded since.
        """
        record = TicketRecord(start)
        if self._records.setdefault(ticket.token, record) is not record:
            raise SequenceError("the ticket was prepared before: every session needs a new one")
        return record

    def accept(self, ticket: Ticket) -> SiloState | None:
        """The silo's reply counts; what its next session resumes from, None where it is nothing.

        Raises:
            SequenceError: the ticket's outcome was not collected, or the ticket is not known.
        """
        record = self.find(ticket)
        if record is None:
            raise SequenceError("a ticket that was not prepared, or discarded, has no session")
        return record.accept()

    def discard(self, ticket: Ticket) -> None:
        """Forget what was prepared for or left by the ticket's session, or will yet be left."""
        record = self._records.pop(ticket.token, None)
        if record is not None:
            record.discard()

    def withdraw(self) -> None:
        """What the sessions have proposed is void."""
        for record in list(self._records.values()):
            record.withdraw()
