"""Metrics of a reconstruction: how much of the texts it has, with intervals over documents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from flower_split.audit.texts import AuditTexts

RESAMPLES = 1000
WORST = 0.1


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share between 0 and 1, with the interval in which 95 % of the resampled data sets have it.

    Documents are resampled, not tokens: those of one document are found or missed together.
    """

    value: float
    low: float
    high: float

    @property
    def fields(self) -> dict[str, float]:
        """As a report holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a reconstruction has of the texts."""

    tokens: Share
    content_tokens: Share | None
    """Of tokens with a letter or a digit that are not among the most frequent ones; None where the
    texts have none."""
    rouge_l: Share
    """Mean over documents of the F-measure of the longest common subsequence (Lin 2004)."""
    documents: Share
    """Of documents of which every token was found."""
    worst_decile: float
    """Mean share of tokens in the tenth of the documents of which most was found."""
    identifiers: Share | None
    """Of planted or found identifiers; None where the texts have none."""

    @property
    def fields(self) -> dict[str, object]:
        """As a report holds it."""
        return asdict(self)


def recovery(
    found: Tensor, texts: AuditTexts, *, seed: int, rows: Sequence[int] | None = None
) -> Recovery:
    """How much of the victims a reconstruction has.

    Args:
        found: (N, T) int64: a token for every position; those that are not scored are not read.
        texts: With the victims.
        seed: Of the resampling.
        rows: Which victims it is of; None for all.
    """
    victims = texts.victims
    rows = list(range(len(victims))) if rows is None else list(rows)
    ids, scored = victims.ids[rows], victims.scored[rows]
    right = (found == ids) & scored
    content = scored & texts.content[ids]
    lengths = scored.sum(1)
    per_document = right.sum(1) / lengths.clamp_min(1)
    worst = max(1, round(WORST * len(rows)))
    rouge = torch.tensor(
        [
            _rouge(found[row][scored[row]].tolist(), ids[row][scored[row]].tolist())
            for row in range(len(rows))
        ]
    )
    whole = (right.sum(1) == lengths).float()
    ones = torch.ones(len(rows))
    return Recovery(
        tokens=ratio(right.sum(1), lengths, seed=seed),
        content_tokens=ratio((right & content).sum(1), content.sum(1), seed=seed)
        if bool(content.any())
        else None,
        rouge_l=ratio(rouge, ones, seed=seed),
        documents=ratio(whole, ones, seed=seed),
        worst_decile=float(per_document.sort(descending=True).values[:worst].mean()),
        identifiers=_identifiers(found, texts, rows, seed),
    )


def ratio(counts: Tensor, of: Tensor, *, seed: int) -> Share:
    """Sum of `counts` over sum of `of`, both (N,) by document, and its interval."""
    counts, of = counts.double(), of.double()
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(counts), (RESAMPLES, len(counts)), generator=generator)
    shares = counts[picks].sum(1) / of[picks].sum(1).clamp_min(1e-12)
    low, high = torch.quantile(shares, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(counts.sum() / of.sum().clamp_min(1e-12))
    return Share(value=value, low=min(low, value), high=max(high, value))


def strongest(found: Mapping[str, Recovery], read: Callable[[Recovery], float]) -> str:
    """The name of the reconstruction of which `read` is the largest."""
    return max(found, key=lambda name: read(found[name]))


def chance(found: Tensor, texts: AuditTexts, rows: Sequence[int] | None = None) -> float:
    """The share of tokens that the tokens of `found`, in a random order, would have right."""
    victims = texts.victims
    rows = list(range(len(victims))) if rows is None else list(rows)
    scored = victims.scored[rows]
    guessed = torch.bincount(found[scored], minlength=texts.vocabulary).double()
    true = torch.bincount(victims.ids[rows][scored], minlength=texts.vocabulary).double()
    return float((guessed / guessed.sum()) @ (true / true.sum()))


def shuffled(
    found: Tensor, texts: AuditTexts, *, seed: int, rows: Sequence[int] | None = None
) -> float:
    """The share of tokens that `found` has right of the victims' tokens in a random order."""
    victims = texts.victims
    rows = list(range(len(victims))) if rows is None else list(rows)
    scored = victims.scored[rows]
    true = victims.ids[rows][scored]
    order = torch.randperm(len(true), generator=torch.Generator().manual_seed(seed))
    return float((found[scored] == true[order]).double().mean())


def best_constant(texts: AuditTexts) -> float:
    """The share of tokens that who always says the victims' most frequent one has right."""
    true = texts.victims.ids[texts.victims.scored]
    return float(torch.bincount(true).max() / len(true))


def _identifiers(found: Tensor, texts: AuditTexts, rows: list[int], seed: int) -> Share | None:
    victims = texts.victims
    known = texts.identifiers
    wanted = [known[row] for row in rows]
    if not any(wanted):
        return None
    got = torch.zeros(len(rows))
    for place, row in enumerate(rows):
        said = texts.decoded(found[place][victims.scored[row]])
        got[place] = sum(one in said for one in wanted[place])
    return ratio(got, torch.tensor([float(len(one)) for one in wanted]), seed=seed)


def _rouge(said: list[int], true: list[int]) -> float:
    """F-measure of the longest common subsequence."""
    if not said or not true:
        return 0.0
    before = [0] * (len(true) + 1)
    for token in said:
        now = [0]
        for place, other in enumerate(true):
            now.append(before[place] + 1 if token == other else max(before[place + 1], now[place]))
        before = now
    common = before[-1]
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(true)
    return 2 * precision * recall / (precision + recall)
