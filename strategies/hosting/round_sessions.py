"""The sessions of one round: whom a message invited to the trunk, and whether the reply counts."""

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from torch import Tensor

from flower_split.errors import AdapterError, RoundError
from flower_split.lowrank import CONTROL, Allowance, Instructions
from flower_split.reporting.counters import checked_counters, trunk_counters
from flower_split.server.starting import TrunkStart
from flower_split.strategies.history import NodeRecord
from flower_split.strategies.hosting.replies import (
    STATISTICS,
    Invited,
    completed,
    own_problem,
    proves,
    readable,
)
from flower_split.strategies.hosting.session_host import SessionHost
from flower_split.transport.invitation import Invitation
from flower_split.transport.messages import Purpose

TICKET_GRACE = 30.0
"""Seconds by which a ticket outlives its round's deadline; the round's end revokes it anyway."""

DROPPED = 0
"""Code of the error that takes the place of a dropped reply (Flower's `ErrorCode.UNKNOWN`)."""


LONGEST_SAMPLE = 4096
"""Characters of a generated sample that are kept."""

REPLY_SECONDS = 15.0
"""Within which a silo that broke off its session must have said why. One whose process was killed
says nothing, and Flower itself notices only after a minute."""

FINISHED_REPLY_SECONDS = 60.0
"""Within which the reply of a silo that finished its session must be announced to the SuperLink.

By then the silo has written what it keeps, handed the reply to its SuperNode on the same machine
(2 s for 200 MB), and the SuperNode, which looks every half second, has announced it. How long its
tensors take from there does not count: the exchange waits for them once the reply is announced.
Beyond that time the reply was lost on its way, of which Flower tells in its logs only."""


class RoundSessions:
    """Context manager around one exchange; on leaving, every session of it has ended.

    Args:
        host: Hosts the trunk.
        purpose: What the round does.
        server_round: Its number.
        num_rounds: Rounds of the run.
        timeout: Seconds after which the exchange ends.
        weight_key: Metric by which the inner strategy weighs replies.
        allowance: Which ranks and alphas silos may have.
        last_training: Whether silos may drop what they keep from round to round.
    """

    def __init__(
        self,
        host: SessionHost,
        *,
        purpose: Purpose,
        server_round: int,
        num_rounds: int,
        timeout: float,
        weight_key: str,
        allowance: Allowance,
        last_training: bool = False,
    ) -> None:
        self.records: dict[int, NodeRecord] = {}
        self.sample = ""
        self._array_key = ""
        self._host = host
        self._purpose: Purpose = purpose
        self._round = server_round
        self._num_rounds = num_rounds
        self._timeout = timeout
        self._weight_key = weight_key
        self._allowance = allowance
        self._last_training = last_training
        self._invited: dict[int, Invited] = {}
        self._ended: dict[int, tuple[float, str]] = {}
        self._split: dict[int, tuple[ArrayRecord, ArrayRecord, dict[str, Tensor]]] = {}

    def __enter__(self) -> "RoundSessions":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for invited in self._invited.values():
            self._host.discard(invited.invitation.ticket)
            offer = invited.invitation.offer
            for ticket in offer.tickets if offer else ():
                self._host.discard(ticket)

    @property
    def is_first_or_last(self) -> bool:
        """Whether nothing was trained before this round, or nothing will be after it."""
        return self._round in (0, self._num_rounds)

    def invite(self, message: Message, *, sample: bool = False) -> Message:
        """A copy of the inner strategy's `message` with the silo's part and an invitation.

        The inner strategy's records may be shared between messages and are left as they are.

        Raises:
            RoundError: the message is not one arrays record and one config record.
            AdapterError: the arrays are not the adapter that the silo is to get.
        """
        content = RecordDict(dict(message.content.items()))
        if len(content.array_records) != 1 or len(content.config_records) != 1:
            raise RoundError(
                f"the inner strategy's message has {len(content.array_records)} ArrayRecords and "
                f"{len(content.config_records)} ConfigRecords, expected exactly one of each"
            )
        ((array_key, arrays),) = content.array_records.items()
        ((config_key, config),) = content.config_records.items()
        instructions = Instructions.from_fields(dict(config.items()))
        silo_part, trunk_part = self._parts_of(arrays, instructions)
        metadata = message.metadata
        if metadata.dst_node_id in self._invited:
            raise RoundError(f"the inner strategy sent two messages to node {metadata.dst_node_id}")
        silo = metadata.run_id, metadata.dst_node_id, self._round
        good_for = self._timeout + TICKET_GRACE
        ticket = self._host.issue(*silo, self._purpose, seconds=good_for)
        invitation = Invitation(
            address=self._host.address,
            ticket=ticket,
            purpose=self._purpose,
            num_rounds=self._num_rounds,
            origin_run_id=self._host.origin_run_id or str(metadata.run_id),
            last_training=self._last_training,
            sample=sample,
            tls=self._host.uses_tls,
            ca=self._host.ca,
            seconds=self._timeout,
            offer=self._host.offer(*silo, seconds=good_for),
        )
        self._array_key = array_key
        content[array_key] = silo_part
        content[config_key] = ConfigRecord({**dict(config.items()), **invitation.to_fields()})
        invited = Message(
            content=content,
            dst_node_id=metadata.dst_node_id,
            message_type=metadata.message_type,
            ttl=metadata.ttl,
            group_id=metadata.group_id,
        )
        self._invited[metadata.dst_node_id] = Invited(
            message=invited,
            invitation=invitation,
            instructions=instructions,
            controls=tuple(name for name in arrays if name.startswith(CONTROL)),
        )
        start = TrunkStart(tensors=trunk_part, instructions=instructions, allowance=self._allowance)
        self._host.prepare(ticket, start)
        return invited

    def receive(self, reply: Message) -> Message | None:
        """The reply as the inner strategy shall see it.

        A reply that counts has the silo's trunk adapters put into it. One that does not comes back
        as an error reply of its node, with the reason. None for a reply to no message of this
        round, or a second one.
        """
        wanted = reply.metadata.reply_to_message_id
        found = [one for one in self._invited.values() if one.message.metadata.message_id == wanted]
        if not found or found[0].message.metadata.dst_node_id in self.records:
            return None
        (invited,) = found
        if reply.has_error():
            reason = readable(reply.error.reason or "") or f"error {reply.error.code}"
            return self._refuse(invited.message, reason)
        problem = self._admit(reply, invited)
        return self._refuse(invited.message, problem) if problem else reply

    def proven_first(self, replies: Iterable[Message]) -> list[Message]:
        """`replies` with those in front that prove where they come from.

        Flower lets a node push a reply in another's name: none of those shall displace the honest
        one, whichever came first.
        """
        invitations = {
            one.message.metadata.message_id: one.invitation for one in self._invited.values()
        }

        def is_unproven(reply: Message) -> bool:
            invitation = invitations.get(reply.metadata.reply_to_message_id)
            return reply.has_error() or invitation is None or not proves(reply, invitation)

        return sorted(replies, key=is_unproven)

    def refuse(self, node_id: int, reason: str) -> Message:
        """Take back a reply that counted so far; an error reply stands for it."""
        return self._refuse(self._invited[node_id].message, reason)

    def is_lost(self, message_id: str) -> bool:
        """Whether the silo that got this message ended its session and stayed silent since.

        A silo has `REPLY_SECONDS` after it broke off its session, and `FINISHED_REPLY_SECONDS`
        after it finished it; both count from the first call that finds the session ended.
        """
        now = time.monotonic()
        for node_id, invited in self._invited.items():
            if invited.message.metadata.message_id == message_id:
                ticket = invited.invitation.ticket
                if self._host.is_broken(ticket):
                    seconds, how = REPLY_SECONDS, "broke off"
                elif self._host.is_finished(ticket):
                    seconds, how = FINISHED_REPLY_SECONDS, "was finished"
                else:
                    return False
                since, _ = self._ended.setdefault(node_id, (now, how))
                return now - since > seconds
        return False

    def settle(self) -> None:
        """Nothing is taken back any more: sessions whose replies count are resumed from."""
        for node_id, invited in self._invited.items():
            if node_id in self.records and not self.records[node_id].failure:
                self._host.accept(invited.invitation.ticket)

    def note_silent(self) -> None:
        """Record a failure for every node that has not answered."""
        for node_id in self._invited.keys() - self.records.keys():
            reason = f"no reply within {self._timeout:g} s"
            if node_id in self._ended:
                _, how = self._ended[node_id]
                reason = f"its session at the trunk {how}, and no reply followed"
            self._record(node_id, failure=reason)

    def too_few(self, counted: int, wanted: int = 1) -> str:
        """What to say when too few replies count: each reason once, with the nodes that gave it."""
        nodes: dict[str, list[int]] = {}
        for record in self.records.values():
            if record.failure:
                nodes.setdefault(record.failure, []).append(record.node_id)
        reasons = "".join(
            f"\n- node{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}: {reason}"
            for reason, ids in nodes.items()
        )
        what = "training" if self._purpose == "train" else "evaluation"
        if counted:
            asked = len(self.records)
            told = f"{what} counts of {counted} of {asked} silos, and strategy.min-replies is "
            return f"round {self._round}: {told}{wanted}:{reasons}"
        return f"round {self._round}: {what} failed on every silo asked:{reasons}"

    def in_order(self, replies: list[Message]) -> list[Message]:
        """`replies` by name of silo, so that sums do not depend on who answered first."""
        ranks = {record.node_id: rank for rank, record in enumerate(self.history())}
        return sorted(replies, key=lambda reply: ranks[reply.metadata.src_node_id])

    def history(self) -> list[NodeRecord]:
        """All records by name of silo, numbers by their value; those that failed at the end."""

        def key(record: NodeRecord) -> tuple[bool, int, str, int]:
            number = int(record.silo) if record.silo.isdecimal() else -1
            return bool(record.failure), number, record.silo, record.node_id

        return sorted(self.records.values(), key=key)

    def _parts_of(
        self, arrays: ArrayRecord, instructions: Instructions
    ) -> tuple[ArrayRecord, dict[str, Tensor]]:
        """Both parts of `arrays`, computed once for messages that share one record."""
        if id(arrays) not in self._split:
            # The record is held too, so that no other gets its place in memory, and its id.
            self._split[id(arrays)] = (arrays, *self._host.parts.split(arrays, instructions))
        return self._split[id(arrays)][1:]

    def _admit(self, reply: Message, invited: Invited) -> str:
        """Complete the reply in place; otherwise say why it does not count."""
        content, trained = reply.content, self._purpose == "train"
        ticket = invited.invitation.ticket
        if not proves(reply, invited.invitation):
            return "the reply does not prove that it comes from the silo that was invited"
        statistics = content.config_records[STATISTICS]
        outcome = self._host.collect(ticket)
        if outcome is None:
            return "the silo did not finish its session at the trunk"
        problem = own_problem(content, self._weight_key, trained=trained)
        if problem:
            return problem
        complete = RecordDict(dict(content.items()))
        if trained:
            ((key, _),) = content.array_records.items()
            del complete[key]
            try:
                complete[self._array_key] = completed(
                    content, outcome, invited, parts=self._host.parts, allowance=self._allowance
                )
            except AdapterError as error:
                return str(error)
        reply.content = complete
        if invited.invitation.sample:
            self.sample = self.sample or str(statistics.get("sample", ""))[:LONGEST_SAMPLE]
        self._record(
            ticket.node_id,
            silo=self._host.silo_of(ticket),
            metrics=dict(next(iter(content.metric_records.values())).items()),
            # What the trunk counted itself is not taken from the silo.
            statistics=checked_counters({**statistics, **trunk_counters(outcome.summary)}),
        )
        return ""

    def _refuse(self, sent: Message, reason: str) -> Message:
        self._record(sent.metadata.dst_node_id, failure=reason)
        return Message(Error(DROPPED, reason), reply_to=sent)

    def _record(self, node_id: int, **told: Any) -> None:
        self.records[node_id] = NodeRecord(
            server_round=self._round, purpose=self._purpose, node_id=node_id, **told
        )
