"""What a silo and the trunk say to each other, free of any wire format.

Axes: B rows of a microbatch, T new tokens a row, S tokens a row with the cached ones (S >= T),
H hidden size.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from flower_split.optimization.settings import OptimizerSettings

PROTOCOL_VERSION = 1

Purpose = Literal["train", "evaluate"]
TicketPurpose = Purpose | Literal["deliver"]
"""What a ticket opens: a session, or a stream of the model's delivery."""
EditKind = Literal["reorder", "crop", "repeat", "select", "reset"]


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Who opens a session: one node of one run in one round, and the token that proves it."""

    run_id: int
    node_id: int
    server_round: int
    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class SessionSpec:
    """What both parties must agree on; a mismatch refuses the session by naming the field."""

    purpose: Purpose
    fingerprint: str
    """`flower_split.segments.fingerprint` of the uncut model, hexadecimal."""
    num_layers: int
    bottom_layers: int
    top_layers: int
    dtype: str
    """Weights' and activations' dtype, as in `ModelConfig.dtype`."""
    trunk_adapters: str
    """`federated`, `shared` or `frozen`."""
    adapter: str
    """Canonical JSON of the adapter configuration; may be empty for `frozen`."""
    h1: str = "fp32"
    h2: str = "fp32"
    g2: str = "fp32"
    g1: str = "fp32"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    seed: int = 0
    """Seed of the trunk's dropout in this session."""
    silo: str = ""
    """The silo's name; empty where the trunk asks for no ticket."""
    session_states: tuple[str, ...] = ()
    """Tags of the optimizer states that the silo can resume from; see `transport.state_tags`."""
    pack: str = ""
    """SHA-256 by which the silo's weights were delivered, hexadecimal; empty for its own."""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, kw_only=True)
class CacheEdit:
    """A change to a key-value cache that `generate()` makes between two forward passes."""

    kind: EditKind
    values: tuple[int, ...] = ()
    """Row indices (`reorder`, `select`), tokens to drop (`crop`) or repeats (`repeat`)."""


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """The key-value cache that a forward pass extends."""

    cache_id: int
    past_length: int
    """Tokens that the cache holds after `edits` and before this pass."""
    edits: tuple[CacheEdit, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardRequest:
    """h1 of one microbatch."""

    step: int
    """Optimizer steps that the session has made before this pass."""
    microbatch: int
    """Number of the microbatch, strictly increasing within the session."""
    hidden: Tensor
    """(B, T, H), the session's dtype."""
    attention_mask: Tensor | None = None
    """(B, S) of bool: true where a token is real."""
    position_ids: Tensor | None = None
    """(B, T) or (1, T) of int64."""
    keep_graph: bool = False
    """Whether a backward pass will follow."""
    dropout: bool = False
    """Whether the model is in training mode."""
    cache: CacheUse | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class BackwardRequest:
    """g2 of one microbatch, for a forward pass made with `keep_graph`."""

    step: int
    microbatch: int
    grad: Tensor
    """(B, T, H): gradient of the loss at h2."""
    wants_input_grad: bool = True
    """Whether g1 is to be returned."""


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """One optimizer step, on both sides at once.

    The norms are those of the silo's own gradients, one per trainable tensor in the order of the
    uncut model's parameters, so that the global norm is the uncut model's to the bit. Both are
    empty when `max_grad_norm` is 0.
    """

    step: int
    learning_rate: float
    norms_before: tuple[float, ...] = ()
    """Norms of the tensors that come before the trunk's layers."""
    norms_after: tuple[float, ...] = ()
    """Norms of the tensors that come after the trunk's layers."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Free the activations of a microbatch that gets no backward pass."""

    microbatch: int


@dataclass(frozen=True, kw_only=True)
class DropCache:
    """Free a key-value cache."""

    cache_id: int


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Declare the session complete."""


@dataclass(frozen=True, kw_only=True)
class StepReply:
    """The trunk's part of the global gradient norm."""

    norms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WireBytes:
    """Payload of a session's tensors as encoded, in bytes, by what they carried."""

    h1: int = 0
    h2: int = 0
    g2: int = 0
    g1: int = 0
    context: int = 0
    """Attention masks and position ids."""

    @property
    def upward(self) -> int:
        """From the silo to the trunk."""
        return self.h1 + self.g2 + self.context

    @property
    def downward(self) -> int:
        """From the trunk to the silo."""
        return self.h2 + self.g1


@dataclass(frozen=True, kw_only=True)
class QueueUse:
    """How a session's forward and backward passes waited for the trunk, in total."""

    seconds: float = 0.0
    """From a request's arrival until its computation began."""
    length: int = 0
    """Requests of other sessions that waited as one arrived."""
    rows: int = 0
    """Rows computed for this session."""
    rows_beside: int = 0
    """Rows of other sessions computed in the same batches."""


@dataclass(frozen=True, kw_only=True)
class SessionSummary:
    """What the trunk counted in a finished session."""

    steps: int
    forwards: int
    backwards: int
    tokens: int
    wire_bytes: WireBytes = WireBytes()
    """Filled in by the trunk's end of the wire, which a backend does not know."""
    queue: QueueUse = QueueUse()


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """Bounds of one session."""

    max_in_flight: int = 8
    """Microbatches whose activations are kept."""
    max_message_tokens: int = 65536
    """B x T of one microbatch."""
    max_cached_tokens: int = 262144
    """Rows x tokens in key-value caches."""


Answerable = ForwardRequest | BackwardRequest | StepRequest | Finish
"""Requests that get a reply over the wire."""
Request = Answerable | Release | DropCache
"""What a silo asks of the trunk in an open session."""
Reply = Tensor | StepReply | SessionSummary | None
"""h2 or g1 (None where g1 was not wanted), or the answer to a step or to Finish; None to others."""
