"""A toy trunk and a toy silo: every adapter tensor is counted up, so that sums are known."""

import secrets

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from in_process_grid import FIRST_NODE

from flower_split.adapters import AdapterPlan
from flower_split.config.sections import ModelConfig, SplitConfig, StrategyConfig
from flower_split.server.ticket_record import SessionOutcome, TicketRecord
from flower_split.strategies.hosting.adapter_parts import AdapterParts
from flower_split.strategies.hosting.invited_silo import InvitedSilo
from flower_split.transport.invitation import Invitation
from flower_split.transport.messages import SessionSummary, Ticket

SHAPES = {"bottom.A": (2, 3), "trunk.A": (2, 2), "trunk.B": (3,), "top.A": (1,)}
TRUNK = ("trunk.A", "trunk.B")


TOY_PLAN = AdapterPlan(
    r=1,
    alpha=1.0,
    dropout=0.0,
    rslora=False,
    fan_in_fan_out=False,
    targets=("toy",),
    modules=tuple(SHAPES),
    shapes=tuple(SHAPES.items()),
)


class ToyHost:
    """Keeps the trunk's part of every ticket; a finished session adds `gain` to it."""

    def __init__(self, gain=10.0):
        self.origin_run_id = ""
        self.parameters, self.waiting = 14, 0
        self.accepted, self.states = [], []
        self.plan = TOY_PLAN
        self.parts = AdapterParts(SHAPES, TRUNK)
        self.gain = gain
        self.records, self.nodes, self.tokens = {}, {}, []

    def begin(self, arrays, *, any_ranks=False):
        if arrays is not None:
            return arrays
        return ArrayRecord(
            {name: Array(np.zeros(shape, np.float32)) for name, shape in SHAPES.items()}
        )

    can_restart = False

    def confirm(self):
        pass

    def session_states(self):
        return self.states

    def load_session_states(self, states):
        self.states = list(states)

    def adapter(self, arrays):
        return self.parts.to_state(arrays)

    def note_connected(self, node_ids):
        self.connected = list(node_ids)

    def invite(self, terms, run_id, node_id, start, *, sample=False):
        token = secrets.token_hex(8)
        self.tokens.append(token)
        self.nodes[token] = node_id
        self.records[token] = TicketRecord(start)
        invitation = Invitation(
            address="toy:1",
            ticket=Ticket(
                run_id=run_id, node_id=node_id, server_round=terms.server_round, token=token
            ),
            purpose=terms.purpose,
            num_rounds=terms.num_rounds,
            origin_run_id=self.origin_run_id or str(run_id),
            last_training=terms.last_training,
            sample=sample,
            seconds=terms.seconds,
        )
        return InvitedSilo(invitation, ToySession(self, invitation.ticket))

    def trained(self, token, tensors):
        """What a session leaves that began with `tensors`."""
        return {name: tensor + self.gain for name, tensor in tensors.items()}

    def finish(self, token):
        """What the silo's session does, to its end."""
        self._open(token).finish(SessionSummary(steps=1, forwards=1, backwards=1, tokens=1))
        self.records[token].close()

    def break_off(self, token):
        """What the silo's session does until it is gone."""
        self._open(token).close()

    def _open(self, token):
        record = self.records[token]
        tensors = self.trained(token, record.start().tensors)
        silo = str(self.nodes[token] - FIRST_NODE)
        record.open(ToyWork(tensors, silo), silo)
        return record


class ToySession:
    """`InvitedSession` of the toy trunk."""

    def __init__(self, host, ticket):
        self._host, self._record = host, host.records[ticket.token]
        self.ticket, self.offer = ticket, None

    @property
    def silo(self):
        return self._record.silo

    @property
    def stage(self):
        return self._record.stage

    @property
    def progress(self):
        return self._record.progress

    def collect(self):
        return self._record.collect()

    def accept(self):
        assert self._record.accept() is None
        self._host.accepted.append((self.ticket.server_round, self.ticket.node_id))

    def discard(self):
        self._host.records.pop(self.ticket.token).discard()


class ToyWork:
    """A session's work that is done when it begins."""

    def __init__(self, tensors, silo):
        self._tensors, self._silo = tensors, silo

    def outcome(self, summary):
        return SessionOutcome(tensors=self._tensors, summary=summary, scaling=None, silo=self._silo)

    def proposal(self, summary):
        return None

    def free(self):
        pass


def honest_reply(
    message, context, host, *, finish=True, arrays=None, metrics=None, proof=None, told=None
):
    """A reply as a silo makes it: its own part plus one, examples 1 + partition id."""
    invitation = Invitation.from_fields(
        message.content["config"], run_id=context.run_id, node_id=context.node_id
    )
    if finish:
        host.finish(invitation.ticket.token)
    partition = int(context.node_config["partition-id"])
    content = RecordDict()
    if invitation.purpose == "train":
        content["arrays"] = arrays or ArrayRecord(
            {k: Array(v.numpy() + np.float32(1)) for k, v in message.content["arrays"].items()}
        )
        metrics = metrics or {"num-examples": 1 + partition, "train-loss": 0.5}
    else:
        metrics = metrics or {"num-examples": 1 + partition, "eval-loss": 0.25}
    content["metrics"] = MetricRecord(metrics)
    content["split"] = ConfigRecord(
        {"proof": proof or invitation.proof(), "bytes-sent": 8, **(told or {})}
    )
    return Message(content, reply_to=message)


def toy_config(**fields):
    defaults = {"num_server_rounds": 2, "round_timeout": 1.0, "evaluate_initial": False}
    return SplitConfig(
        model=ModelConfig(name="toy"),
        **{**defaults, "strategy": StrategyConfig(min_nodes=1), **fields},
    )
