"""What a silo and the trunk say to each other, free of any wire format.

Axes: B rows of a microbatch, T new tokens a row, S tokens a row with the cached ones (S >= T),
H hidden size.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from flower_split.config.wire import HOPS, UPWARD_HOPS, WireConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy.settings import PrivacySettings

PROTOCOL_VERSION = 2

Purpose = Literal["train", "evaluate"]
TicketPurpose = Purpose | Literal["deliver"]
"""What a ticket opens: a session, or a stream of the model's delivery."""
EditKind = Literal["reorder", "crop", "repeat", "select", "reset"]
AdapterGrad = Literal["add", "measure", "drop", "return", "hold"]
"""What becomes of the adapter's gradient of a microbatch: it is added to that of the step (and
that one is measured), is dropped, is returned to the silo instead, or is held row by row until a
`Weigh`."""
AdapterAction = Literal[
    "list",
    "read",
    "write",
    "copy",
    "snapshot",
    "restore",
    "snapshot_moments",
    "restore_moments",
    "ranks_update",
    "ranks_scores",
    "ranks_mask",
    "ranks_mask_again",
    "ranks_reset",
]


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Who opens a session: one node of one run in one round, and the token that proves it."""

    run_id: int
    node_id: int
    server_round: int
    token: str = field(repr=False)
    certificate: str = ""
    """Thumbprint of the certificate of whoever shows the ticket, as the trunk has seen it in the
    TLS handshake; empty without one. It does not travel."""


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
    wire: WireConfig = field(default_factory=WireConfig)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    seed: int = 0
    """Seed of the trunk's dropout in this session."""
    silo: str = ""
    """The silo's name; empty where the trunk asks for no ticket."""
    session_states: tuple[str, ...] = ()
    """Tags of the optimizer states that the silo can resume from; see `transport.state_tags`."""
    pack: str = ""
    """SHA-256 by which the silo's weights were delivered, hexadecimal; empty for its own."""
    loaded_adapter: str = ""
    """SHA-256 of the trained adapter that both have loaded, hexadecimal; empty for none."""
    prefix_tokens: int = 0
    """Tokens of the prefix that a pass may begin with: keys and values of the trunk's layers, which
    the silo trains. 0 for none."""
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


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """With which of the session's adapters a pass computes: its own, as it is, without a value."""

    disabled: bool = False
    copy: str = ""
    """Name of a copy that the session has made; empty for its own."""
    scale: float = 1.0
    """Factor of the adapter's own scaling."""


OWN_ADAPTER = AdapterUse()


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
    prefix: Tensor | None = None
    """(2 L R, V, W): keys and values in turn of the trunk's L layers, R rows each, V tokens, W over
    all heads. R is B, or 1 where it is the same for all rows. The cache begins with it."""
    keep_graph: bool = False
    """Whether a backward pass will follow."""
    dropout: bool = False
    """Whether the model is in training mode."""
    cache: CacheUse | None = None
    adapter: AdapterUse = OWN_ADAPTER
    autocast: str = ""
    """Dtype of the silo's matrix products; empty for that of its weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardReply:
    """What the trunk answers to h1 where its adapters are AdaLoRA's."""

    hidden: Tensor
    """h2, (B, T, H)."""
    orthogonality: float
    """How far the trunk's triplets are from orthogonal; see `adapters.adalora.orthogonality`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BackwardRequest:
    """g2 of one microbatch, for a forward pass made with `keep_graph`."""

    step: int
    microbatch: int
    grad: Tensor
    """(B, T, H): gradient of the loss at h2."""
    wants_input_grad: bool = True
    """Whether g1 is to be returned."""
    adapter_grad: AdapterGrad = "add"
    orthogonality_grad: float = 0.0
    """Gradient of the loss at `ForwardReply.orthogonality`."""
    prefix_shape: tuple[int, ...] = ()
    """Of the prefix's gradient, which is returned too; the trunk knows it by itself."""

    @property
    def wants_more(self) -> bool:
        """Whether the answer has more than g1."""
        return self.adapter_grad in ("measure", "return", "hold") or bool(self.prefix_shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class BackwardReply:
    """What a microbatch's backward pass gave."""

    grad: Tensor | None = None
    """g1, (B, T, H); None where it was not wanted."""
    prefix_grad: Tensor | None = None
    """Gradient of the loss at the prefix, in its shape; None where there is no prefix."""
    norm: float = 0.0
    """2-norm of the adapter's gradient of the step so far, where it was to be measured."""
    largest: float = 0.0
    """Magnitude of its largest element."""
    adapter_grads: tuple[Tensor, ...] = ()
    """The adapter's gradients, float32 in the order of `AdapterReply.held`, where asked for."""
    squared_norms: tuple[float, ...] = ()
    """Of the adapter's gradient of every row, where it is held."""


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
    constants: OptimizerSettings | None = None
    """Of AdamW, as the silo has set them for this step; None for those of the handshake."""
    scale: float = 1.0
    """Factor of the gradient, as the silo scaled its own."""
    clip: float = math.inf
    """Bound of the magnitude of the gradient's elements, after it was scaled."""
    keeps_gradient: bool = False
    """Whether the trunk's gradient stays until a `Discard`; else it is forgotten with the step."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Free the activations of a microbatch that gets no backward pass."""

    microbatch: int


@dataclass(frozen=True, kw_only=True)
class DropCache:
    """Free a key-value cache."""

    cache_id: int


@dataclass(frozen=True, kw_only=True)
class Discard:
    """Forget the adapter's gradient of the step so far."""

    zeros: bool = False
    """As zeros, with which a step would be taken; else as if there had been no gradient."""


@dataclass(frozen=True, kw_only=True)
class Weigh:
    """Add the rows' gradients that are held of a microbatch to that of the step."""

    microbatch: int
    factors: tuple[float, ...]
    """Of every row, 0 to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterCall:
    """Something to be done with the session's adapter; see `AdapterAction` in `trunk.proto`."""

    action: AdapterAction
    name: str = ""
    """Of a copy, or the tag of a snapshot."""
    tensors: tuple[Tensor, ...] = ()
    """All of the adapter's, float32 in the order of `AdapterReply.held`, where it is written."""
    threshold: float = 0.0
    """Score of the best triplet that is masked, where some are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterReply:
    """The trunk's part of the session's adapter."""

    held: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Name in the uncut model and shape of every tensor, in model order."""
    tensors: tuple[Tensor, ...] = ()
    """The same in values, float32, where they were read."""
    scores: tuple[float, ...] = ()
    """Of the triplets, module by module, where they were asked for."""
    kept: int = 0
    """Triplets that are not masked, where they were masked again."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Declare the session complete."""


@dataclass(frozen=True, kw_only=True)
class StepReply:
    """The trunk's part of the global gradient norm."""

    norms: tuple[float, ...] = ()


CONTEXT = "context"
"""Under which attention masks and position ids are counted together."""
ADAPTER_UP, ADAPTER_DOWN = "adapter_up", "adapter_down"
"""Under which adapter tensors are counted, where a silo writes and reads them."""
PREFIX, PREFIX_GRAD = "prefix", "prefix_grad"
"""Names of the prefix and its gradient, under which they are counted too."""


class WireBytes(Mapping[str, int]):
    """Payload of a session's tensors as encoded, in bytes, by hop; what is no hop after them.

    Args:
        counts: Those that are not 0.
    """

    def __init__(self, **counts: int) -> None:
        names = (*HOPS, CONTEXT, ADAPTER_UP, ADAPTER_DOWN, PREFIX, PREFIX_GRAD)
        unknown = counts.keys() - {*names}
        if unknown:
            raise ValueError(f"bytes of {sorted(unknown)}, expected {[*names]}")
        self._counts = {name: counts.get(name, 0) for name in names}

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"WireBytes({', '.join(f'{name}={count}' for name, count in self.items())})"

    @property
    def upward(self) -> int:
        """From the silo to the trunk."""
        return sum(self[name] for name in (*UPWARD_HOPS, CONTEXT, ADAPTER_UP, PREFIX))

    @property
    def downward(self) -> int:
        """From the trunk to the silo."""
        return sum(self.values()) - self.upward


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
    wire_bytes: WireBytes = field(default_factory=WireBytes)
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
    max_adapter_elements: int = 0
    """Elements of the trunk's part of the adapter, where the silo may read and write it; else 0."""


Answerable = ForwardRequest | BackwardRequest | StepRequest | AdapterCall | Finish
"""Requests that get a reply over the wire."""
Unanswered = Release | DropCache | Discard | Weigh
"""Requests that get none."""
Request = Answerable | Unanswered
"""What a silo asks of the trunk in an open session."""
Reply = Tensor | ForwardReply | BackwardReply | StepReply | AdapterReply | SessionSummary | None
"""h2 (in a `ForwardReply` with AdaLoRA) or g1 (None where not wanted; a `BackwardReply` where more
was asked for), or the answer to another answerable request; None to those without
one."""
