"""Attacks on one recording of the run's own cut and wire, one after the other."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flower_split.audit import metrics
from flower_split.audit.attacks.labels import LabelsFound, as_text, find_labels, right_labels
from flower_split.audit.attacks.learning import ARCHITECTURES, Fitted, fit
from flower_split.audit.attacks.matching import Matched, match
from flower_split.audit.attacks.nearest import MEASURES, Embeddings, nearest
from flower_split.audit.attacks.rows import RowsTold, rows_told, with_loss
from flower_split.audit.attacks.search import search
from flower_split.audit.outcome import AttackResult
from flower_split.audit.recording import Recording
from flower_split.audit.settings import AuditSettings
from flower_split.audit.subject import CutModel
from flower_split.audit.texts import AuditTexts
from flower_split.config.wire import WireConfig

Check = Callable[[], None]
Say = Callable[[str], None]

BASE, CURRENT = "the public base weights", "the current adapters too"
LEARNT = "public text"


@dataclass(kw_only=True, eq=False)
class Attacker:
    """Who makes the attacks on one recording, and what they have come to."""

    texts: AuditTexts
    settings: AuditSettings
    known: Embeddings
    model: CutModel
    recording: Recording
    public: Recording
    """Of the public texts, through the same defence."""
    wire: WireConfig
    adapted: bool
    """Whether there is an adapter that is not at its start, which the attacker has then."""
    check: Check
    say: Say
    results: list[AttackResult] = field(default_factory=list)
    fitted: dict[str, Fitted] = field(default_factory=dict)
    told: RowsTold | None = None
    matched: Matched | None = None

    def nearest(self) -> None:
        """F1, by every measure."""
        for measure in MEASURES:
            with self._timed(f"F1 nearest neighbour, {measure}") as took:
                found = nearest(self.recording, self.known, measure, check=self.check)
            self._add("F1", f"nearest neighbour, {measure}", found, took, party="T", knows=BASE)

    def inverters(self, architectures: tuple[str, ...] = ARCHITECTURES) -> None:
        """F2, by every architecture."""
        for one in architectures:
            with self._timed(f"F2 learned inverter, {one}") as took:
                made = self._fit(one)
                found = made.reconstruct(self.recording, self.check)
            self._add(
                "F2",
                f"learned inverter, {one}",
                found,
                took,
                party="A+T" if self.adapted else "T",
                knows=f"{self._weights}, {LEARNT}",
                detail={"steps": made.steps, "converged": made.converged},
            )

    def search(self) -> None:
        """F3: the best inverter's proposals, by exact search."""
        rows = self._searched
        with self._timed("F3 exact search") as took:
            scores = self._beliefs()
            with self.model.bottoms() as bottom:
                found = search(self.recording, scores, bottom, self.wire, check=self.check)
        self._add(
            "F3",
            f"exact search of {len(rows)} texts, by the proposals of F2",
            found,
            took,
            party="A+T" if self.adapted else "T",
            knows=f"{self._weights}, {LEARNT}",
        )

    def matching(self) -> None:
        """F4: embeddings that match, from what the best inverter believes."""
        with self._timed("F4 continuous matching") as took:
            scores = self._beliefs()
            with self.model.embedded_bottoms() as (table, bottom):
                made = match(self.recording, scores, table, bottom, self.wire, check=self.check)
        self.matched = made
        self._add(
            "F4",
            f"continuous matching of {len(self._searched)} texts, from what F2 believes",
            made.found,
            took,
            party="A+T" if self.adapted else "T",
            knows=f"{self._weights}, {LEARNT}",
            detail={"steps": made.steps, "converged": made.converged, "error": made.error},
        )

    def rows(self) -> None:
        """B1: which rows have a loss."""
        with self._timed("B1 rows of the gradient") as took:
            self.told = rows_told(self.recording, self.texts.victims)
        if self.told is None:
            return
        auc = metrics.Share(value=self.told.auc, low=self.told.auc, high=self.told.auc)
        self.results.append(
            AttackResult(
                key="B1",
                name="zero rows and norms of the gradient (an AUC; 0.5 tells nothing)",
                party="T",
                knows="nothing",
                recording=self.recording.digest,
                seconds=took[0],
                share=auc,
                detail={
                    "zero-rows": self.told.zero_rows,
                    "rows-without-loss": self.told.others,
                },
            )
        )

    def labels(self, *, refine: bool = True) -> LabelsFound:
        """B2, and where it is asked for B3, with and without what F2 believes."""
        victims, digest = self.texts.victims, self.recording.digest
        with self._timed("B2 labels in one pass, B3 refined") as took, self.model.tops() as top:
            made = find_labels(self.recording, victims, top, refine=refine, check=self.check)
        guess = self._labels(made.guess)
        kinds = [("B2", "labels, in one pass", made.one_pass)]
        if made.refined is not None:
            kinds.append(("B3", "labels, refined on the simplex", made.refined))
        for key, name, found in kinds:
            self.results.append(
                AttackResult(
                    key=key,
                    name=name,
                    party="A+T" if self.adapted else "T",
                    knows=f"{self._weights}, rows with a loss",
                    recording=digest,
                    seconds=took[0],
                    labels=self._labels(found),
                    guess=guess,
                )
            )
        if made.logits is not None and self.fitted:
            self._combine(made.logits)
        return made

    @property
    def best_architecture(self) -> str:
        """That of the inverter with the lowest held-out loss: no victim is looked at."""
        return min(self.fitted, key=lambda one: self.fitted[one].loss)

    @property
    def _searched(self) -> range:
        return range(min(self.settings.search_documents, len(self.texts.victims)))

    def _beliefs(self) -> Tensor:
        """(D, T, V): logarithms of what the best inverter believes of the texts that are searched.

        What every text begins with need not be looked for.
        """
        inverter = self.fitted[self.best_architecture]
        scores = torch.cat(
            [
                inverter.logits(self.recording, torch.tensor([row])).log_softmax(-1)
                for row in self._searched
            ]
        )
        begins = self.texts.public.ids[:, 0].unique()
        if len(begins) == 1:
            scores[:, 0, begins] = scores[:, 0].max() + 1
        return scores

    def _combine(self, logits: Tensor) -> None:
        told = with_loss(self.texts.victims.learnt)
        inverter = self.fitted[self.best_architecture]
        with self._timed("B3 combined with F2") as took:
            found = list[Tensor]()
            for row in range(len(self.texts.victims)):
                self.check()
                own = inverter.logits(self.recording, torch.tensor([row])).log_softmax(-1)
                labels = logits[row : row + 1] * told[row : row + 1, :, None]
                found.append(as_text(labels, own).argmax(-1))
        self._add(
            "B3+F2",
            "refined labels with the inverter's belief",
            torch.cat(found),
            took,
            party="A+T" if self.adapted else "T",
            knows=f"{self._weights}, {LEARNT}, rows with a loss",
        )

    def _fit(self, architecture: str) -> Fitted:
        if architecture not in self.fitted:
            self.fitted[architecture] = fit(
                architecture,
                self.public,
                self.texts,
                self.known,
                most_steps=self.settings.inverter_steps,
                seed=self.settings.seed,
                check=self.check,
            )
        return self.fitted[architecture]

    def _labels(self, found: Tensor) -> metrics.Share:
        right, of = right_labels(found, self.texts.victims)
        return metrics.ratio(right, of, seed=self.settings.seed)

    @property
    def _weights(self) -> str:
        return f"{BASE}, {CURRENT}" if self.adapted else BASE

    def _add(
        self,
        key: str,
        name: str,
        found: Tensor,
        took: list[float],
        *,
        party: str,
        knows: str,
        detail: dict[str, object] | None = None,
    ) -> None:
        rows = range(len(found))
        self.results.append(
            AttackResult(
                key=key,
                name=name,
                party=party,
                knows=knows,
                recording=self.recording.digest,
                seconds=took[0],
                recovery=metrics.recovery(
                    found, self.texts, seed=self.settings.seed, rows=list(rows)
                ),
                detail=detail or {},
                found=found,
            )
        )

    @contextmanager
    def _timed(self, what: str) -> Iterator[list[float]]:
        self.say(what)
        self.check()
        took, began = [0.0], time.perf_counter()
        yield took
        took[0] = time.perf_counter() - began


def token_shares(results: list[AttackResult]) -> dict[str, float]:
    """By attack its best share of tokens or labels, for a sweep."""
    shares = dict[str, float]()
    for one in results:
        if one.recovery is not None:
            shares[one.key] = max(shares.get(one.key, 0.0), one.recovery.tokens.value)
        if one.labels is not None and one.guess is not None:
            shares[one.key] = one.labels.value
            shares["model's own guess"] = one.guess.value
    return shares
