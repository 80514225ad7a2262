"""An audit from its beginning to its end: recording, attacks, instrument checks, other settings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from flower_split.audit import controls, metrics
from flower_split.audit.attacking import Attacker, Say, token_shares
from flower_split.audit.canaries import CANARIES, tell_canaries
from flower_split.audit.describing import described
from flower_split.audit.labels import right_labels
from flower_split.audit.learning import Fitted
from flower_split.audit.nearest import MEASURES, Embeddings, embeddings, nearest
from flower_split.audit.outcome import AttackResult, Outcome, SweepPoint
from flower_split.audit.policy import Policy
from flower_split.audit.recording import Recording
from flower_split.audit.settings import AuditSettings, Budget, BudgetUsedUpError
from flower_split.audit.span import SpanCheck, numerical_rank, sizes, span_check
from flower_split.audit.subject import CutModel, Subject
from flower_split.audit.texts import AuditTexts, canary_documents
from flower_split.audit.updates import Inputs, first_factors, step_gradient
from flower_split.config.wire import HOPS, WireConfig

NOT_BUILT = {
    "F4": "continuous matching from F2 is not built",
    "U2": "gradient matching over local steps is not built",
    "H1": "a hijacking trunk is not built",
}
SWEPT_CODECS = ("int8", "nf4")
MOST_DEPTHS = 6


@dataclass(kw_only=True, eq=False)
class _Audit:
    subject: Subject
    texts: AuditTexts
    settings: AuditSettings
    budget: Budget
    say: Say
    outcome: Outcome
    architecture: str = "transformer"
    known: Embeddings | None = None
    plain: Recording | None = None
    recording: Recording | None = None
    """Of the run's own cut and wire."""
    fitted: dict[str, Fitted] = field(default_factory=dict)

    @property
    def wire(self) -> WireConfig:
        return self.subject.config.wire

    @property
    def cuts(self) -> tuple[int, int]:
        split = self.subject.config.split
        return split.bottom_layers, split.top_layers

    def run(self, *, sweeps: bool) -> None:
        """Everything, until the budget is used up."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ("positive control", self.positive),
            ("attacks and controls at the run's own cut and wire", self.own_cut),
            ("attacks of the trunk's operator without the silos' adapters", self.trunk_alone),
            ("U1", self.updates),
            ("M1", self.canaries),
        ]
        if sweeps:
            steps += [("other cuts", self.depths), ("other codecs", self.codecs)]
        else:
            self.outcome.not_run["other cuts and codecs"] = "not asked for"
        for place, (_, step) in enumerate(steps):
            try:
                step()
            except BudgetUsedUpError:
                self.outcome.used_up = True
                for name, _ in steps[place:]:
                    self.outcome.not_run[name] = "the budget was used up, or not all of it was run"
                return

    def positive(self) -> None:
        """No layers, no codec: whoever finds nothing here has a broken instrument."""
        self.say("positive control: no layers")
        with self.subject.cut(0, self.cuts[1]) as model:
            with model.bottoms() as bottom:
                tokens = self.texts.victims.ids.shape[1]
                self.known = embeddings(bottom, self.texts.vocabulary, tokens)
            self.plain = model.record_h1(self.texts.victims, WireConfig(), seed=self.settings.seed)
        self.outcome.recordings["positive control"] = self.plain.digest
        best = max(
            self._tokens(nearest(self.plain, self.known, one, check=self.budget.check))
            for one in MEASURES
        )
        self.outcome.controls.append(controls.positive(best))

    def own_cut(self) -> None:
        """All attacks on what the run's own settings send, and the controls that need them."""
        with self.subject.cut(*self.cuts) as model:
            attacker = self._attacker(model, self.wire, self._recorded(model, self.wire, "own"))
            self.outcome.attacks = attacker.results
            try:
                attacker.nearest()
                attacker.inverters()
                self.architecture = attacker.best_architecture
                attacker.search()
                attacker.rows()
                if attacker.told is None:
                    self.outcome.not_run["B1"] = "inapplicable: every row that is sent has a loss"
                attacker.labels()
            finally:
                self.fitted |= attacker.fitted
            self._deafened(model, attacker.recording)
        self.recording = attacker.recording
        self.outcome.controls += [
            controls.shuffled(attacker.results, self.texts, seed=self.settings.seed),
            controls.one_recording(attacker.results, attacker.recording),
        ]

    def trunk_alone(self) -> None:
        """The same attacks of T, who is not A: with the base weights in place of the adapter's."""
        if self.subject.adapter is not None:  # else T has made them all
            self._without_adapters()
        self.outcome.controls.append(controls.converged(self.fitted))
        self.outcome.is_complete = True

    def _without_adapters(self) -> None:
        assert self.recording is not None
        self.say("the trunk's operator alone, without the silos' adapters")
        with replace(self.subject, adapter=None).cut(*self.cuts) as base:
            attacker = self._attacker(base, self.wire, self.recording, adapted=False)
            attacker.inverters((self.architecture,))
            attacker.search()
            attacker.labels()
        self.outcome.attacks += attacker.results
        self.fitted |= {f"{name}, by T alone": one for name, one in attacker.fitted.items()}

    def updates(self) -> None:
        """U1: the span check, on the gradient and on what AdamW makes of it."""
        if not self.subject.config.peft.is_plain and self.subject.adapter is None:
            self.outcome.not_run["U1"] = "inapplicable: the adapter is not plain LoRA"
            return
        bottom, top = self.cuts
        if not bottom:
            self.outcome.not_run["U1"] = (
                "inapplicable: the first layer is the trunk's, whose operator has its inputs"
            )
            return
        self.say("U1 span check of the adapter's gradient")
        checks, updates = list[SpanCheck](), list[SpanCheck]()
        with self.subject.cut(bottom, top, trains=True) as model, model.steps(self.wire) as steps:
            factors = first_factors(steps.client, steps.bottom)
            if factors is None:
                self.outcome.not_run["U1"] = (
                    "inapplicable: the first layer has no LoRA on its input"
                )
                return
            inputs = Inputs(factors, self.texts.vocabulary)
            ids = self._distinct()
            if self.subject.adapter is None:
                # LoRA begins with a factor of zeros, which has the other one's gradient be zero.
                steps.begin(ids)
            rank = numerical_rank(torch.cat(steps.gradients(ids, factors.weights)).cpu())
            for size in sizes(rank, len(ids) - 1):
                self.budget.check()
                text = ids[: size + 1]
                gradients = steps.gradients(text, factors.weights)
                step = step_gradient(inputs, text, torch.cat(gradients).cpu(), rank=rank)
                checks.append(span_check(step))
                made = torch.cat(steps.update(factors.weights, gradients)).cpu()
                updates.append(span_check(replace(step, gradient=made)))
        self.outcome.controls.append(controls.span(checks))
        self._add_updates(checks, updates, len(factors.names))

    def canaries(self) -> None:
        """M1: who has the adapter that results tells what it was trained on."""
        self.say("M1 canaries in an adapter that is trained here")
        began, seed = self.budget.spent, self.settings.seed
        made = canary_documents(self.texts, 2 * CANARIES, seed=seed)
        told = tell_canaries(
            self.subject, self.texts.victims, made, seed=seed, check=self.budget.check
        )
        self.outcome.attacks.append(
            AttackResult(
                key="M1",
                name=f"canaries told from others at 1 % false ones, {told.count} of each",
                party="M",
                knows="the canaries, the adapter of a silo that trains alone",
                recording=self.outcome.recordings["own"],
                seconds=self.budget.spent - began,
                share=metrics.Share(value=told.tpr, low=told.tpr, high=told.tpr),
                detail={"least-epsilon": told.epsilon, "steps": told.steps},
            )
        )

    def depths(self) -> None:
        """Nearest neighbour, inverter and labels over the cut."""
        layers = self.subject.layers
        last = layers - 1
        every = max(1, -(-last // (MOST_DEPTHS - 1)))
        for depth in sorted({*range(0, last + 1, every), last}):
            bottom, top = depth, min(depth, last - depth)
            self.say(f"other cuts: {bottom} layers before the trunk, {top} behind it")
            with self.subject.cut(bottom, top) as model:
                self._swept(model, self.wire, "depth", str(depth), (bottom, top))

    def codecs(self) -> None:
        """The same with coarser codecs on the wire."""
        with self.subject.cut(*self.cuts) as model:
            for codec in ("fp32", *SWEPT_CODECS):
                self.say(f"other codecs: {codec}")
                wire = replace(self.wire, **dict.fromkeys(HOPS, codec))  # type: ignore[arg-type]
                self._swept(model, wire, "codec", codec, self.cuts)

    def _swept(
        self, model: CutModel, wire: WireConfig, kind: str, setting: str, cuts: tuple[int, int]
    ) -> None:
        recording = self._recorded(model, wire, f"{kind} {setting}")
        attacker = self._attacker(model, wire, recording, quiet=True)
        attacker.nearest()
        attacker.inverters((self.architecture,))
        attacker.labels(refine=False)
        self.outcome.sweep.append(
            SweepPoint(
                kind=kind,
                setting=setting,
                bottom_layers=cuts[0],
                top_layers=cuts[1],
                shares=token_shares(attacker.results),
                converged=attacker.fitted[self.architecture].converged,
            )
        )

    def _deafened(self, model: CutModel, recording: Recording) -> None:
        """The controls under noise of a hundred times the signal."""
        assert self.known is not None and self.plain is not None
        wire = controls.deafening(self.wire, recording)
        deaf = self._recorded(model, wire, "noise control")
        attacker = self._attacker(model, wire, deaf, quiet=True)
        self.say("noise control: a hundred times the signal")
        attacker.nearest()
        attacker.inverters(tuple(dict.fromkeys(("linear", self.architecture))))
        attacker.rows()
        made = attacker.labels()
        self.fitted |= {f"{name}, noise": one for name, one in attacker.fitted.items()}
        victims = self.texts.victims
        count = int(right_labels(made.guess, victims)[1].sum())

        def share(found: torch.Tensor) -> float:
            return float(right_labels(found, victims)[0].sum()) / count

        baseline = max(share(made.guess), metrics.best_constant(self.texts))
        labels = {"B2": (share(made.one_pass), baseline, count)}
        if made.refined is not None:
            labels["B3"] = (share(made.refined), baseline, count)
        found = {f"{one.key} {one.name}": one.found for one in attacker.results}
        texts = {name: one for name, one in found.items() if one is not None}
        self.outcome.controls.append(controls.noise(texts, labels, attacker.told, self.texts))
        leaking, leaks = controls.injected(
            attacker.recording, self.plain.h1, seed=self.settings.seed
        )
        self.outcome.recordings["injected leak"] = leaking.digest
        self.outcome.controls.append(
            controls.injected_found(
                nearest(attacker.recording, self.known, "cosine", check=self.budget.check),
                nearest(leaking, self.known, "cosine", check=self.budget.check),
                leaks,
                self.texts,
            )
        )

    def _recorded(self, model: CutModel, wire: WireConfig, name: str) -> Recording:
        seed, check = self.settings.seed, self.budget.check
        recording = model.record(self.texts.victims, wire, seed=seed, check=check)
        self.outcome.recordings[name] = recording.digest
        return recording

    def _attacker(
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

    def _add_updates(self, checks: list[SpanCheck], updates: list[SpanCheck], factors: int) -> None:
        detail = {
            "factors": factors,
            "gradient": [one.fields for one in checks],
            "update-of-adamw": [one.fields for one in updates],
        }
        applicable = [one for one in updates if one.applicable]
        found = max((one.found * (one.false < 0.5) for one in applicable), default=0.0)
        self.outcome.attacks.append(
            AttackResult(
                key="U1",
                name="span check of what one step of AdamW over one short text sends",
                party="A",
                knows="the current adapters",
                recording=self.outcome.recordings["own"],
                seconds=0.0,
                share=metrics.Share(value=found, low=found, high=found),
                detail=detail,
            )
        )

    def _distinct(self) -> torch.Tensor:
        """Different tokens of the victims, as they come, as long as a text is."""
        victims = self.texts.victims
        found = dict.fromkeys(victims.ids[victims.scored].tolist())
        return torch.tensor(list(found)[: victims.ids.shape[1]])

    def _tokens(self, found: torch.Tensor) -> float:
        scored = self.texts.victims.scored
        return float((found == self.texts.victims.ids)[scored].double().mean())


def run_audit(
    subject: Subject,
    texts: AuditTexts,
    policy: Policy,
    *,
    settings: AuditSettings,
    budget: Budget,
    sweeps: bool = True,
    say: Say = lambda text: None,
) -> Outcome:
    """Audit a subject.

    Args:
        subject: Model, cut, wire and adapter.
        texts: Those that are attacked, and those that an attacker learns from.
        policy: How much may be found.
        settings: How much is tried.
        budget: How long it may take.
        sweeps: Whether other cuts and codecs are looked at too.
        say: Takes what is being done, in words.

    Raises:
        ConfigError: the policy's file was changed meanwhile.
        FlowerSplitError: the model cannot be cut there, or does not compute.
    """
    outcome = Outcome(
        subject=described(subject, texts, settings, budget),
        policy=policy,
        documents=len(texts.victims),
        not_run=dict(NOT_BUILT),
    )
    audit = _Audit(
        subject=subject,
        texts=texts,
        settings=settings,
        budget=budget,
        say=say,
        outcome=outcome,
    )
    with _own_random_numbers(settings.seed):
        audit.run(sweeps=sweeps)
    outcome.seconds = budget.spent
    policy.check_unchanged()
    return outcome


def _silent(text: str) -> None:
    pass


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
