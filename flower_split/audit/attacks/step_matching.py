"""U2: gradient matching over the local steps, by who aggregates the adapters.

A text is sought whose steps add to the adapter what the silo's did (Zhu et al., "Deep Leakage from
Gradients", arXiv:1906.08935). Tokens are few and apart, and AdamW keeps hardly more than signs, so
one place after the other is tried: the fit's derivative proposes tokens, and what really fits
better is taken (as Ebrahimi et al., "HotFlip", arXiv:1712.06751, did for other ends).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flower_split.audit.attacks.simulated_steps import SimulatedSteps

TOKENS = 6
"""Of the texts, from their beginning."""
TEXTS = 2
STEPS = 2
"""Of the run's local steps at most, all over one text."""
STARTS = 2
CANDIDATES = 12
"""Tokens that are tried at a place, by each derivative."""
SHARES = ((1.0,), (0.5, 0.0))
"""Of the token at a place in what is derived there, the rest being public texts' tokens: of one
search, and of one that goes on from what it has found."""
ROUNDS = 12
"""Searches through all places at most."""
FITS = 1e-3
"""One less the cosine, below which a text is the one that was trained on."""

Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent:
    """What the aggregator has of a round of a silo."""

    update: Mapping[str, Tensor]
    """What its steps added to the adapter, by the tensor's name."""
    tokens: int
    """Of the text."""
    steps: int


@dataclass(frozen=True, kw_only=True)
class StepsMatched:
    """What matching one update came to. A fit is the cosine of what a text adds with what was sent,
    in the mean over tensors."""

    tokens: int
    """That were not known before."""
    steps: int
    found: int
    """Of the tokens, at their places."""
    fit: float
    """Of the text that was found."""
    true_fit: float
    """Of the text itself with what is sent without codecs, transforms and dropout."""
    other_fit: float
    """Of another text with that."""
    mended: bool
    """Whether the text itself is found there from one that differs from it in one token."""
    converged: bool
    """Whether no token that was tried fits better at any place."""

    @property
    def fields(self) -> dict[str, object]:
        """As a report holds it."""
        return asdict(self)


class StepMatching:
    """The attack on one update.

    Args:
        simulated: The aggregator's copy of the model.
        sent: What was sent.
        prior: (V,): how often public texts have each token.
        check: Called now and then.
    """

    def __init__(
        self, simulated: SimulatedSteps, sent: Sent, prior: Tensor, check: Check = lambda: None
    ) -> None:
        self._simulated = simulated
        self._sent = sent
        self._prior = prior.to(simulated.table)
        self._check = check
        self._told = [name for name, one in sent.update.items() if bool(one.any())]

    @property
    def steps(self) -> int:
        """That were taken."""
        return self._sent.steps

    def matched(self, starts: Sequence[Tensor], known: int) -> tuple[Tensor, bool]:
        """The text that fits best, (T,), of what is found from several, and whether every search
        had come to its end.

        Args:
            starts: (T,) each.
            known: Tokens at the beginning that are known.
        """
        best, text, ended = float("inf"), starts[0], True
        for start in starts:
            found, converged = self.searched(start, range(known, len(start)))
            gap, ended = self.gap(found), ended and converged
            if gap < best:
                best, text = gap, found
            if best < FITS:
                break
        return text, ended

    def searched(self, ids: Tensor, places: Sequence[int]) -> tuple[Tensor, bool]:
        """A text, (T,), in which no token that is tried fits better at one of the places; and
        whether it was come to within the rounds."""
        ended = True
        for shares in SHARES:
            ids, ended = self._searched(ids, places, shares)
            if not ended or self.gap(ids) < FITS:
                break
        return ids, ended

    def _searched(
        self, ids: Tensor, places: Sequence[int], shares: Sequence[float]
    ) -> tuple[Tensor, bool]:
        ids, best, idle = ids.clone(), self.gap(ids), 0
        for place in [*places] * ROUNDS:
            if idle == len(places) or best < FITS:
                return ids, True
            idle += 1
            self._check()
            tried = self._proposed(ids, place, shares)
            nearest = tried[min(range(len(tried)), key=self._gaps(tried).__getitem__)]
            gap = self.gap(nearest)
            if gap < best:
                best, ids, idle = gap, nearest, 0
        return ids, idle == len(places) or best < FITS

    def gap(self, ids: Tensor) -> float:
        """One less the cosine of what a text, (T,), adds with what was sent."""
        return float(self._gap(self._sure(ids), smooth=False).detach())

    def _gaps(self, ids: Tensor) -> list[float]:
        """Of K texts, (K, T)."""
        sure = self._sure(ids)
        made = None
        if self._sent.steps == 1:
            made = self._simulated.first_updates(sure @ self._simulated.table, sure[:, 1:])
        if made is None:
            return [self.gap(one) for one in ids]
        fits = [
            F.cosine_similarity(made[name].flatten(1), self._sent.update[name].flatten()[None])
            for name in self._told
        ]
        gaps: list[float] = (1 - torch.stack(fits).mean(0)).tolist()
        return gaps

    def _proposed(self, ids: Tensor, place: int, shares: Sequence[float]) -> Tensor:
        """(K, T): the text with tokens at a place of which the fit's derivative promises most.

        Derived where the token that is there counts by each of `shares`: where it counts wholly, a
        wrong one can be most of what is derived.
        """
        found = list[Tensor]()
        for share in shares:
            chances = self._sure(ids)
            chances[place] = share * chances[place] + (1 - share) * self._prior
            chances.requires_grad_()
            (slope,) = torch.autograd.grad(self._gap(chances, smooth=True), chances)
            found.append(slope[place].topk(min(CANDIDATES, len(self._prior)), largest=False)[1])
        best = torch.cat(found).unique()
        best = best[best != ids[place]]
        tried = ids.repeat(len(best), 1)
        tried[:, place] = best
        return tried

    def _sure(self, ids: Tensor) -> Tensor:
        return F.one_hot(ids, len(self._prior)).to(self._prior)

    def _gap(self, chances: Tensor, *, smooth: bool) -> Tensor:
        made = self._simulated.update(
            chances @ self._simulated.table, chances[1:], self._sent.steps, smooth=smooth
        )
        fits = [
            F.cosine_similarity(made[name].flatten(), self._sent.update[name].flatten(), dim=0)
            for name in self._told
        ]
        return 1 - torch.stack(fits).mean()
