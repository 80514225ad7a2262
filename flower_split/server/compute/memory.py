"""The memory that one pass needs, told from its shape before anything of it is allocated.

Axes: B rows, T new tokens a row, S tokens with those before them, H hidden size, L trunk layers.

An estimate from above, of four parts, with e bytes an element:

- what a layer computes a token: B T e (20 H + 6 I), I the width of its feed-forward part; of one
  layer, and of L more where they wait for a backward pass;
- the attention mask as the stock code makes it, whose steps hold 16 bytes a pair: 16 B T S;
- attention scores and their float32 softmax, where the attention's implementation makes them:
  2 (e + 4) bytes for each head and pair; for each of L layers that wait for a backward pass e + 4
  more, and with dropout of attention twice that;
- keys and values of a cache that the pass extends, of L layers and of a copy of one: 2 B S e W a
  layer, W the width of keys.

`tests/server/compute/test_memory_bound.py` holds it against what passes take.
"""

from dataclasses import dataclass
from typing import Any

from flower_split.devices.memory import free_memory
from flower_split.errors import TrunkBusyError
from flower_split.segments import Trunk
from flower_split.transport.messages import ForwardRequest

_LAZY = ("sdpa", "flash", "flex")
"""What is in the names of implementations of attention that make no scores of all pairs."""
_MASKLESS = "flash"
"""And in those that make no mask of them."""


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What decides how much memory a trunk's passes need."""

    layers: int
    element: int
    """Bytes."""
    width: int
    """20 H + 6 I."""
    heads: int
    keys: int
    """Width of a layer's keys, of all heads that they have."""
    attention: str
    """Name of the implementation."""
    drops: bool
    """Whether attention has dropout in training."""
    windows: bool
    """Whether a layer's attention is bounded by a window, which needs a mask."""
    on_accelerator: bool = False

    @classmethod
    def of_trunk(cls, trunk: Trunk) -> "PassCost":
        """That of a trunk's passes; what its configuration does not say is taken as it is usual."""
        config = trunk.config
        hidden = trunk.hidden_size
        heads = _largest(config, "num_attention_heads", "n_head") or 1
        head = _largest(config, "head_dim") or -(-hidden // heads)
        inner = _largest(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
        expert = _largest(config, "moe_intermediate_size") or inner
        experts = _largest(config, "num_experts_per_tok")
        drops = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
        return cls(
            layers=len(trunk.cuts.trunk_range),
            element=max(2, trunk.dtype.itemsize),
            width=20 * hidden + 6 * max(inner, experts * expert),
            heads=heads,
            keys=(_largest(config, "num_key_value_heads") or heads) * head,
            attention=str(getattr(config, "_attn_implementation", None) or "eager"),
            drops=any(getattr(config, name, 0.0) for name in drops),
            windows=bool(getattr(config, "sliding_window", None)),
            on_accelerator=trunk.device.type == "cuda",
        )

    @property
    def token_bytes(self) -> int:
        """Bytes that are kept of a token until its backward pass, but for what grows with the
        square of a text's length."""
        return self.element * self.width * self.layers

    def bytes_of(self, request: ForwardRequest, past: int) -> int:
        """Bytes that the passes of a request need at most, its backward pass included.

        Args:
            request: The request.
            past: Tokens before its own in each row.
        """
        rows, tokens = request.hidden.shape[:2]
        pairs = rows * tokens * (past + tokens)
        kept = self.layers if request.keep_graph else 0
        needed = rows * tokens * self.element * self.width * (1 + kept)
        bare = request.attention_mask is None and request.position_ids is None
        if _MASKLESS not in self.attention and (
            not bare or past or self.windows or self.attention != "sdpa"
        ):
            needed += 16 * pairs
        drops = request.dropout and self.drops
        if not any(name in self.attention for name in _LAZY) or (drops and not self.on_accelerator):
            score = self.element + 4
            needed += self.heads * pairs * score * (2 + kept * (2 if drops else 1))
        if request.cache is not None:
            needed += 2 * rows * (past + tokens) * self.element * self.keys * (self.layers + 1)
        return needed


class PassMemory:
    """The bound of the memory that one pass may need.

    Args:
        trunk: Whose passes.
        max_bytes: The bound; 0 chooses it from what the device has free now.
    """

    def __init__(self, trunk: Trunk, max_bytes: int = 0) -> None:
        self._cost = PassCost.of_trunk(trunk)
        self.max_bytes = max_bytes or free_memory(trunk.device)
        """The bound."""

    def admit(self, request: ForwardRequest, past: int, *, by_row: int = 0) -> int:
        """Bytes that the passes of `request` need, after `past` tokens in each row.

        Args:
            request: The request.
            past: Tokens before its own in each row.
            by_row: Further bytes for every row, as of gradients that are told by row.

        Raises:
            TrunkBusyError: more than the bound.
        """
        needed = self._cost.bytes_of(request, past)
        if request.keep_graph:
            needed += by_row * request.hidden.shape[0]
        if needed > self.max_bytes:
            rows, tokens = request.hidden.shape[:2]
            raise TrunkBusyError(
                f"{rows} x {tokens} tokens after {past} would need about {needed / 1e9:.3g} GB of "
                f"memory with {self._cost.attention} attention; the trunk's bound of one pass is "
                f"{self.max_bytes / 1e9:.3g} GB. Lower train.batch-size or train.max-length, set "
                "model.attention to 'sdpa', or raise trunk.max-memory"
            )
        return needed


def _largest(config: Any, *names: str) -> int:
    """The largest number under the first name that has one, be it one for each layer; else 0."""
    for name in names:
        value = getattr(config, name, None)
        numbers = value if isinstance(value, list | tuple) else [value]
        found = [number for number in numbers if isinstance(number, int) and number > 0]
        if found:
            return max(found)
    return 0
