"""Notices what no trunk computes: answers that are far too large or too small for the question."""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from flower_split.errors import WireError
from flower_split.transport.messages import PREFIX_GRAD

ASKED_BY: Mapping[str, str] = MappingProxyType({"h2": "h1", "g1": "g2", PREFIX_GRAD: "g2"})
"""Each hop that the trunk answers, by the one that asks for it."""

FARTHEST = 1e8
"""Factor that lies between an answer's root mean square and the question's, at most. Models grow
their hidden states by up to some 1e4 from the first layer to the last."""

FARTHER = 1e4
"""Factor by which an answer may be farther from its question than all answers before it."""

_MOST_OPEN = 1024


class MagnitudeWatch:
    """Compares h2 with h1, and g1 and a prefix's gradient with g2, microbatch by microbatch.

    The trunk's owner can train on anything that looks like activations; this finds what does not.

    Args:
        changed: Hops that a transform changes; what answers there is not compared.
    """

    def __init__(self, changed: Collection[str] = ()) -> None:
        self._asked_by = {hop: by for hop, by in ASKED_BY.items() if hop not in changed}
        self._asked: dict[tuple[str, int], float] = {}
        self._seen: dict[str, tuple[float, float]] = {}

    def ask(self, hop: str, microbatch: int, tensor: Tensor) -> None:
        """Note `tensor` of `hop`, (B, T, H), as it leaves the model."""
        if hop not in self._asked_by.values() or tensor.is_meta:
            return
        if len(self._asked) >= _MOST_OPEN:
            del self._asked[next(iter(self._asked))]
        self._asked[hop, microbatch] = _root_mean_square(tensor)

    def answer(self, hop: str, microbatch: int, tensor: Tensor) -> None:
        """Check `tensor` of `hop`, (B, T, H), as it enters the model.

        Raises:
            WireError: it is nothing that a trunk computes of what it was asked.
        """
        asked = self._asked.get((self._asked_by.get(hop, ""), microbatch), 0.0)
        if asked == 0.0 or not math.isfinite(asked):
            return
        ratio = _root_mean_square(tensor) / asked
        low, high = self._seen.get(hop, (ratio, ratio))
        least, most = max(low / FARTHER, 1 / FARTHEST), min(high * FARTHER, FARTHEST)
        if not least <= ratio <= most:
            before = f", and {low:.3g} to {high:.3g} times before" if hop in self._seen else ""
            raise WireError(
                f"{hop} of microbatch {microbatch} is {ratio:.3g} times as large as "
                f"{ASKED_BY[hop]}, which it answers{before}: a trunk computes no such thing, "
                "unless numbers of its dtype or of the wire's codec have run over or under. The "
                "session ends; ask the trunk's owner"
            )
        self._seen[hop] = min(low, ratio), max(high, ratio)


def _root_mean_square(tensor: Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32)
    return float(norm) / math.sqrt(max(1, tensor.numel()))
