"""F3: exact search. What an inverter proposes is tried by running the bottom again.

A causal model's h1 at a place depends on the tokens up to it alone, and differs for every other
prefix (Nikolaou et al., "Language Models are Injective and Hence Invertible", arXiv:2510.15511).
So texts are found from left to right: of the proposals for the next token the one whose h1 is the
nearest to what was seen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from flower_split.audit.recording import Recording
from flower_split.config.wire import WireConfig

PROPOSALS = 8
"""Tokens that are tried first at each place."""
MORE = 128
"""Tokens that are tried where none of the first ones fits."""
FITS = 0.05
"""Distance over the length of what was seen below which a token fits."""


def search(
    recording: Recording,
    scores: Tensor,
    bottom: Callable[[Tensor], Tensor],
    wire: WireConfig,
    *,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """(D, T) int64: the texts of the first D rows of a recording.

    Args:
        recording: Whose rows are of texts padded on the right.
        scores: (D, T, V): logarithms of what an inverter believes of every token.
        bottom: h1, (B, T, H), of token ids, (B, T), by the attacker's copy of the bottom.
        wire: Of the recording: rows are clipped alike, and its noise says how near is near.
        check: Called at every place.
    """
    documents, tokens, vocabulary = scores.shape
    found = torch.zeros(documents, tokens, dtype=torch.int64)
    first, more = min(PROPOSALS, vocabulary), min(MORE, vocabulary)
    for place in range(tokens):
        check()
        rows = recording.mask[:documents, place].nonzero()[:, 0]
        if not len(rows):
            break
        seen = recording.h1[rows, place]
        # A first token that is missed would be missed in every prefix.
        last = vocabulary if place == 0 else more
        for count in sorted({first, more, last}):
            proposed = scores[rows, place].topk(count, dim=-1)
            distance = _distances(found[rows, :place], proposed.indices, seen, bottom, wire)
            belief = proposed.values - distance.square() / (2 * _variance(seen, wire))[:, None]
            chosen = belief.argmax(1, keepdim=True)
            found[rows, place] = proposed.indices.gather(1, chosen)[:, 0]
            # Noise hides whether a token fits; without any, the next best are tried too.
            far = distance.gather(1, chosen)[:, 0] > FITS * seen.norm(dim=-1)
            rows, seen = rows[far], seen[far]
            if wire.deviation_of("h1") or not len(rows):
                break
    return found


def _distances(
    before: Tensor,
    proposed: Tensor,
    seen: Tensor,
    bottom: Callable[[Tensor], Tensor],
    wire: WireConfig,
) -> Tensor:
    """(R, K): how far what each proposal would have sent is from what was seen, (R, H)."""
    rows, count = proposed.shape
    if not before.shape[1]:
        # Without a prefix all rows have the same candidates, which are computed once.
        distinct, places = proposed.unique(return_inverse=True)
        made = torch.cat([bottom(part[:, None])[:, 0] for part in distinct.split(8192)])
        return torch.stack(
            [
                (clipped(made, wire)[at] - one).norm(dim=-1)
                for at, one in zip(places, seen, strict=True)
            ]
        )
    texts = torch.cat([before.repeat_interleave(count, dim=0), proposed.reshape(-1, 1)], dim=1)
    size = max(1, 8192 // texts.shape[1])
    made = torch.cat([bottom(part)[:, -1] for part in texts.split(size)])
    made = clipped(made, wire).reshape(rows, count, -1)
    distance: Tensor = (made - seen[:, None]).norm(dim=-1)
    return distance


def clipped(made: Tensor, wire: WireConfig) -> Tensor:
    """h1, (…, H), as the wire clips its rows."""
    clip = wire.clip_of("h1")
    if not clip:
        return made
    factors = (clip / made.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    shortened: Tensor = made * factors
    return shortened


def _variance(seen: Tensor, wire: WireConfig) -> Tensor:
    """(R,): of an element of what was seen about what the right token would have sent."""
    coarse = (0.01 * seen.square().mean(-1).sqrt()).square()
    return (coarse + wire.deviation_of("h1") ** 2).clamp_min(1e-12)
