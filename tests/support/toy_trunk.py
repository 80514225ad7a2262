"""A toy trunk and a toy silo: every adapter tensor is counted up, so that sums are known."""

import secrets

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from in_process_grid import FIRST_NODE

from flower_split.adapters import AdapterPlan
from flower_split.config.sections import ModelConfig, SplitConfig, StrategyConfig
from flower_split.server.starting import SessionOutcome
from flower_split.strategies.hosting.adapter_parts import AdapterParts
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
        self.accepted, self.states = [], []
        self.plan = TOY_PLAN
        self.address, self.uses_tls, self.ca = "toy:1", True, ""
        self.parts = AdapterParts(SHAPES, TRUNK)
        self.gain = gain
        self.prepared, self.finished, self.tokens, self.broken = {}, {}, [], set()

    def begin(self, arrays, *, any_ranks=False):
        if arrays is not None:
            return arrays
        return ArrayRecord(
            {name: Array(np.zeros(shape, np.float32)) for name, shape in SHAPES.items()}
        )

    def session_states(self):
        return self.states

    def load_session_states(self, states):
        self.states = list(states)

    def adapter(self, arrays):
        return self.parts.to_state(arrays)

    def issue(self, run_id, node_id, server_round, purpose, *, seconds):
        token = secrets.token_hex(8)
        self.tokens.append(token)
        return Ticket(run_id=run_id, node_id=node_id, server_round=server_round, token=token)

    def offer(self, run_id, node_id, server_round, *, seconds):
        return None

    def prepare(self, ticket, start):
        self.prepared[ticket.token] = start.tensors

    def finish(self, token):
        """What the silo's session does at its end."""
        state = {name: tensor + self.gain for name, tensor in self.prepared[token].items()}
        summary = SessionSummary(steps=1, forwards=1, backwards=1, tokens=1)
        self.finished[token] = SessionOutcome(tensors=state, summary=summary, scaling=None)

    def collect(self, ticket):
        return self.finished.pop(ticket.token, None)

    def silo_of(self, ticket):
        return str(ticket.node_id - FIRST_NODE)

    def is_broken(self, ticket):
        return ticket.token in self.broken

    def is_finished(self, ticket):
        return ticket.token in self.finished

    def accept(self, ticket):
        self.accepted.append((ticket.server_round, ticket.node_id))

    def note_connected(self, node_ids):
        self.connected = list(node_ids)

    def discard(self, ticket):
        self.finished.pop(ticket.token, None)
        self.prepared.pop(ticket.token, None)


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
