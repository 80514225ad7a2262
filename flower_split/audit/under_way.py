"""An audit under way: what its parts take, and what they have come to."""

from dataclasses import dataclass, field

import torch

from flower_split.audit.attacking import Attacker, Say
from flower_split.audit.attacks.learning import Fitted
from flower_split.audit.attacks.matching import Matched
from flower_split.audit.attacks.nearest import Embeddings
from flower_split.audit.outcome import Outcome
from flower_split.audit.recording import Recording
from flower_split.audit.settings import AuditSettings, Budget
from flower_split.audit.subject import CutModel, Subject
from flower_split.audit.texts import AuditTexts
from flower_split.config.wire import WireConfig


@dataclass(kw_only=True, eq=False)
class UnderWay:
    """One audit, from its beginning on."""

    subject: Subject
    texts: AuditTexts
    settings: AuditSettings
    budget: Budget
    say: Say
    outcome: Outcome
    architecture: str = "transformer"
    """Of the inverter that is tried where one has to do."""
    known: Embeddings | None = None
    plain: Recording | None = None
    """Without layers and defence."""
    recording: Recording | None = None
    """Of the run's own cut and wire."""
    fitted: dict[str, Fitted] = field(default_factory=dict)
    matched: dict[str, Matched] = field(default_factory=dict)
    base: Fitted | None = None
    """The inverter of who has the base weights alone."""
    deaf: tuple[WireConfig, Fitted] | None = None
    """The wire of the noise control, and an inverter that was trained through it."""

    @property
    def wire(self) -> WireConfig:
        """The run's own."""
        return self.subject.config.wire

    @property
    def cuts(self) -> tuple[int, int]:
        """Layers before the trunk and behind it."""
        split = self.subject.config.split
        return split.bottom_layers, split.top_layers

    def recorded(self, model: CutModel, wire: WireConfig, name: str) -> Recording:
        """The victims, as they arrive at the trunk."""
        seed, check = self.settings.seed, self.budget.check
        recording = model.record(self.texts.victims, wire, seed=seed, check=check)
        self.outcome.recordings[name] = recording.digest
        return recording

    def attacker(
        self,
        model: CutModel,
        wire: WireConfig,
        recording: Recording,
        *,
        adapted: bool | None = None,
        quiet: bool = False,
    ) -> Attacker:
        """Who attacks a recording by what `model` does to public texts."""
        assert self.known is not None
        seed, check = self.settings.seed + 1, self.budget.check
        return Attacker(
            texts=self.texts,
            settings=self.settings,
            known=self.known,
            model=model,
            recording=recording,
            public=model.record_h1(self.texts.public, wire, seed=seed, check=check),
            wire=wire,
            adapted=self.subject.adapter is not None if adapted is None else adapted,
            check=check,
            say=_silent if quiet else self.say,
        )

    def token_share(self, found: torch.Tensor) -> float:
        """Of the first D victims' tokens that a reconstruction, (D, T), has."""
        victims, count = self.texts.victims, len(found)
        right = (found == victims.ids[:count])[victims.scored[:count]]
        return float(right.double().mean())


def _silent(text: str) -> None:
    pass
