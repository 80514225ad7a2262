"""The sessions of one exchange: whom a message invited to the trunk, and which replies count."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from torch import Tensor

from flower_split.config.silo_order import silo_order
from flower_split.errors import AdapterError, RoundError
from flower_split.lowrank import CONTROL, Allowance, Instructions
from flower_split.reporting.counters import checked_counters, trunk_counters
from flower_split.server.ticket_record import TrunkStart
from flower_split.strategies.history import NodeRecord
from flower_split.strategies.hosting.adapter_parts import AdapterParts
from flower_split.strategies.hosting.invited_silo import InvitedSilo, RoundTerms, SeenSession
from flower_split.strategies.hosting.replies import (
    Asked,
    by_reason,
    completed,
    outvoted,
    own_problem,
    proves,
    readable,
    reweighted,
    scaling_of_reply,
    weight_of,
)
from flower_split.strategies.hosting.round_filter import RoundFilter
from flower_split.strategies.hosting.update_norms import Given, update_norms
from flower_split.strategies.inner_message import adapter_and_config
from flower_split.transport.invitation import SPLIT_RECORD

logger = logging.getLogger(__name__)

DROPPED = 0
"""Code of the error that takes the place of a dropped reply (Flower's `ErrorCode.UNKNOWN`)."""

LONGEST_SAMPLE = 4096
"""Characters of a generated sample that are kept."""

REPLY_SECONDS = 15.0
"""Seconds within which a silo that broke off its session must have said why. One whose process was
killed says nothing, and Flower itself notices only after a minute."""

FINISHED_REPLY_SECONDS = 60.0
"""Seconds within which a silo that finished its session must have its reply announced to the
SuperLink.

By then the silo has written what it keeps, handed the reply to its SuperNode on the same machine
(2 s for 200 MB), and the SuperNode, which looks every half second, has announced it. How long its
tensors take from there does not count: the exchange waits for them once the reply is announced.
Beyond that time the reply was lost on its way, of which Flower tells in its logs only."""


class SessionHost(Protocol):
    """What an exchange needs of the host of the trunk."""

    @property
    def parts(self) -> AdapterParts:
        """Which adapter tensors the inner strategy sees, and which of them are the trunk's."""
        ...

    def invite(
        self,
        terms: RoundTerms,
        run_id: int,
        node_id: int,
        start: TrunkStart,
        *,
        sample: bool = False,
    ) -> InvitedSilo:
        """A silo with new tickets; see `TrunkHost.invite`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class _Invited:
    message: Message
    """As it was sent."""
    silo: InvitedSilo
    asked: Asked
    given: Given


class RoundSessions:
    """Context manager around one exchange; on leaving, every session of it has ended.

    Args:
        host: Hosts the trunk.
        terms: What the exchange is for.
        weight_key: Metric by which the inner strategy weighs replies.
        allowance: Which ranks and alphas silos may have.
        round_filter: Compares the replies with one another.
    """

    def __init__(
        self,
        host: SessionHost,
        terms: RoundTerms,
        *,
        weight_key: str,
        allowance: Allowance,
        round_filter: RoundFilter,
    ) -> None:
        self.records: dict[int, NodeRecord] = {}
        """By node id: what came of every silo that was asked, once its replies are received."""
        self.sample = ""
        self._host = host
        self._terms = terms
        self._weight_key = weight_key
        self._allowance = allowance
        self._filter = round_filter
        self._array_key = ""
        self._invited: dict[int, _Invited] = {}
        self._ended: dict[int, tuple[float, str]] = {}
        self._split: dict[int, tuple[ArrayRecord, ArrayRecord, dict[str, Tensor]]] = {}

    def __enter__(self) -> "RoundSessions":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for invited in self._invited.values():
            invited.silo.discard()

    @property
    def is_first_or_last(self) -> bool:
        """Whether nothing was trained before this round, or nothing will be after it."""
        return self._terms.server_round in (0, self._terms.num_rounds)

    @property
    def counted(self) -> int:
        """How many silos' replies count."""
        return sum(not record.failure for record in self.records.values())

    @property
    def terms(self) -> RoundTerms:
        """What the exchange is for."""
        return self._terms

    def seen(self) -> dict[int, SeenSession]:
        """By node id: how far the session of every silo that was invited is."""
        return {node_id: invited.silo.seen for node_id, invited in [*self._invited.items()]}

    def invite(self, message: Message, *, sample: bool = False) -> Message:
        """A copy of the inner strategy's `message` with the silo's part and an invitation.

        The inner strategy's records may be shared between messages and are left as they are.

        Raises:
            RoundError: the message is not one arrays record and one config record.
            AdapterError: the arrays are not the adapter that the silo is to get.
        """
        content, metadata = RecordDict(dict(message.content.items())), message.metadata
        (array_key, arrays), (config_key, config) = adapter_and_config(message)
        instructions = Instructions.from_fields(dict(config.items()))
        silo_part, trunk_part = self._parts_of(arrays, instructions)
        if metadata.dst_node_id in self._invited:
            raise RoundError(f"the inner strategy sent two messages to node {metadata.dst_node_id}")
        silo = self._host.invite(
            self._terms,
            metadata.run_id,
            metadata.dst_node_id,
            TrunkStart(tensors=trunk_part, instructions=instructions, allowance=self._allowance),
            sample=sample,
        )
        self._array_key = array_key
        content[array_key] = silo_part
        content[config_key] = ConfigRecord({**dict(config.items()), **silo.invitation.to_fields()})
        sent = Message(
            content=content,
            dst_node_id=metadata.dst_node_id,
            message_type=metadata.message_type,
            ttl=metadata.ttl,
            group_id=metadata.group_id,
        )
        controls = tuple(name for name in arrays if name.startswith(CONTROL))
        asked = Asked(instructions=instructions, controls=controls)
        given = Given(silo=silo_part, trunk=trunk_part, scale=instructions.scale)
        self._invited[metadata.dst_node_id] = _Invited(
            message=sent, silo=silo, asked=asked, given=given
        )
        return sent

    def is_lost(self, message_id: str) -> bool:
        """Whether the silo that got this message ended its session and stayed silent since.

        A silo has `REPLY_SECONDS` after it broke off its session, and `FINISHED_REPLY_SECONDS`
        after it finished it; both count from the first call that finds the session ended.
        """
        now = time.monotonic()
        for node_id, invited in self._invited.items():
            if invited.message.metadata.message_id == message_id:
                if invited.silo.is_broken:
                    seconds, how = REPLY_SECONDS, "broke off"
                elif invited.silo.is_finished:
                    seconds, how = FINISHED_REPLY_SECONDS, "was finished"
                else:
                    return False
                since, _ = self._ended.setdefault(node_id, (now, how))
                return now - since > seconds
        return False

    def receive(self, replies: Iterable[Message]) -> list[Message]:
        """The exchange is over: its replies as the inner strategy shall see them, by silo.

        A reply that counts has the silo's trunk adapters put into it, and the silo's next session
        resumes from what this one has left. One that does not count is an error reply of its node,
        with the reason, which is in `records` and in the log too. Silos that did not reply have no
        message, only a record. Replies come in the order of the silos' names, so that sums do not
        depend on who answered first.
        """
        received: dict[int, Message] = {}
        for reply in self._proven_first(replies):
            invited = self._find(reply)
            if invited is not None and invited.silo.node_id not in received:
                received[invited.silo.node_id] = self._taken(reply, invited)
        self._note_silent()
        contents = {node: one.content for node, one in received.items() if not one.has_error()}
        for node_id, reason in outvoted(contents).items():
            received[node_id] = self._refused(self._invited[node_id], reason)
        if self._filter.compares:
            self._compare(received)
        if self.counted:  # otherwise the error, or the warning, that follows says all
            for reason, silos in by_reason(self._failures()).items():
                logger.warning("%s: no reply that counts: %s", silos, reason)
        for node_id, invited in self._invited.items():  # an order that checkpoints keep
            if not self.records[node_id].failure:
                invited.silo.accept()
        return [received[one.node_id] for one in self.history() if one.node_id in received]

    def too_few(self, wanted: int = 1) -> str:
        """What to say when too few replies count: each reason once, with the silos that gave it."""
        reasons = "".join(
            f"\n- {silos}: {reason}" for reason, silos in by_reason(self._failures()).items()
        )
        where = f"round {self._terms.server_round}"
        what = "training" if self._terms.purpose == "train" else "evaluation"
        if self.counted:
            told = f"{what} counts of {self.counted} of {len(self.records)} silos"
            return f"{where}: {told}, and strategy.min-replies is {wanted}:{reasons}"
        return f"{where}: {what} failed on every silo asked:{reasons}"

    def _failures(self) -> dict[str, str]:
        return {
            record.silo or f"node {record.node_id}": record.failure
            for record in self.records.values()
            if record.failure
        }

    def history(self) -> list[NodeRecord]:
        """All records in the order of the silos' names; those that failed at the end."""
        return sorted(
            self.records.values(),
            key=lambda one: (bool(one.failure), silo_order(one.silo), one.node_id),
        )

    def _proven_first(self, replies: Iterable[Message]) -> list[Message]:
        """`replies` with those in front that prove where they come from.

        Flower lets a node push a reply in another's name: none of those shall displace the honest
        one, whichever came first.
        """

        def is_unproven(reply: Message) -> bool:
            invited = self._find(reply)
            return (
                reply.has_error() or invited is None or not proves(reply, invited.silo.invitation)
            )

        return sorted(replies, key=is_unproven)

    def _find(self, reply: Message) -> _Invited | None:
        """To whom the message went that `reply` answers; None for a message of no exchange here."""
        wanted = reply.metadata.reply_to_message_id
        found = [one for one in self._invited.values() if one.message.metadata.message_id == wanted]
        return found[0] if found else None

    def _taken(self, reply: Message, invited: _Invited) -> Message:
        """The reply with the trunk's part in it, or an error reply that says why it is none."""
        if reply.has_error():
            problem = readable(reply.error.reason or "") or f"error {reply.error.code}"
        else:
            problem = self._admit(reply, invited)
        return self._refused(invited, problem) if problem else reply

    def _admit(self, reply: Message, invited: _Invited) -> str:
        """Complete the reply in place; otherwise say why it does not count."""
        content, trained = reply.content, self._terms.purpose == "train"
        if not proves(reply, invited.silo.invitation):
            return "the reply does not prove that it comes from the silo that was invited"
        outcome = invited.silo.collect()
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
                    content,
                    outcome,
                    invited.asked,
                    parts=self._host.parts,
                    allowance=self._allowance,
                )
            except AdapterError as error:
                return str(error)
        reply.content = complete
        statistics = content.config_records[SPLIT_RECORD]
        if invited.silo.invitation.sample:
            self.sample = self.sample or str(statistics.get("sample", ""))[:LONGEST_SAMPLE]
        (metrics,) = content.metric_records.values()
        self._record(
            invited.silo.node_id,
            silo=outcome.silo,
            metrics=dict(metrics.items()),
            # What the trunk counted itself is not taken from the silo.
            statistics=checked_counters({**statistics, **trunk_counters(outcome.summary)}),
        )
        return ""

    def _compare(self, received: dict[int, Message]) -> None:
        """Replace or change in `received` what the filter finds, or log that it would."""
        counting = [one for one in self.history() if not one.failure]
        named = {one.node_id: one.silo or f"node {one.node_id}" for one in counting}
        if self._terms.purpose == "train":
            norms = {node: self._norms(node, received[node]) for node in named}
            for node, reason in self._filter.outlying(norms).items():
                name = named.pop(node)
                if self._filter.refuses:
                    received[node] = self._refused(self._invited[node], reason)
                else:
                    logger.warning(
                        "%s would not count, were strategy.filter 'refuse': %s", name, reason
                    )
        weights = {node: weight_of(received[node].content, self._weight_key) for node in named}
        for node, weight in self._filter.capped(weights).items():
            logger.warning(
                "%s %s with %s %.10g in place of %.10g: strategy.filter-share is %g",
                named[node],
                "counts" if self._filter.refuses else "would count, were strategy.filter 'refuse',",
                self._weight_key,
                weight,
                weights[node],
                self._filter.share,
            )
            if self._filter.refuses:
                received[node].content = reweighted(
                    received[node].content, self._weight_key, weight
                )

    def _norms(self, node_id: int, reply: Message) -> dict[str, float]:
        (arrays,) = reply.content.array_records.values()
        return update_norms(
            arrays,
            self._invited[node_id].given,
            scaling=scaling_of_reply(reply.content, self._allowance),
            run=self._allowance.scaling,
        )

    def _note_silent(self) -> None:
        """Record a failure for every node that has not answered."""
        for node_id in self._invited.keys() - self.records.keys():
            reason = f"no reply within {self._terms.seconds:g} s"
            if node_id in self._ended:
                _, how = self._ended[node_id]
                reason = f"its session at the trunk {how}, and no reply followed"
            self._record(node_id, failure=reason)

    def _refused(self, invited: _Invited, reason: str) -> Message:
        """The error reply of a silo whose reply does not count, or counts no more."""
        node_id = invited.silo.node_id
        before = self.records.get(node_id)
        self._record(node_id, failure=reason, silo=before.silo if before else "")
        return Message(Error(DROPPED, reason), reply_to=invited.message)

    def _record(self, node_id: int, **told: Any) -> None:
        self.records[node_id] = NodeRecord(
            server_round=self._terms.server_round,
            purpose=self._terms.purpose,
            node_id=node_id,
            **told,
        )

    def _parts_of(
        self, arrays: ArrayRecord, instructions: Instructions
    ) -> tuple[ArrayRecord, dict[str, Tensor]]:
        """Both parts of `arrays`, computed once for messages that share one record."""
        if id(arrays) not in self._split:
            # The record is held too, so that no other gets its place in memory, and its id.
            self._split[id(arrays)] = (arrays, *self._host.parts.split(arrays, instructions))
        return self._split[id(arrays)][1:]
