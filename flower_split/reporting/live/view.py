"""`RunView`: what the events of a run add up to, event by event."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flower_split.config.silo_order import silo_order
from flower_split.reporting.events import KINDS, Event
from flower_split.reporting.result import EVAL_LOSS, TRAIN_LOSS

WAITING, RUNNING = "waiting", "running"
MOST_SILOS = 512
"""Silos that are shown; a stream with more names is not believed further."""
MOST_NEWS = 40
MOST_RATES = 240
SLOW = 0.5
"""Part of the median of the others' steps below which a silo at work is called slow."""


@dataclass(kw_only=True)
class SiloView:
    """One silo, as it is now."""

    name: str
    state: str = "silent"
    """`silent` (nothing yet), `working`, `slow`, `done`, `lost`, `refused` or `left`."""
    why: str = ""
    steps: int = 0
    tokens: int = 0
    """So far in the session that is open."""
    rate: float = 0.0
    """Tokens a second of its last session, or since the last gauges."""
    train: dict[int, float] = field(default_factory=dict)
    """Loss by round."""
    evaluate: dict[int, float] = field(default_factory=dict)
    bytes: dict[int, dict[str, float]] = field(default_factory=dict)
    """By round, by hop."""


class RunView:
    """Takes events and knows the run's state. Whatever is not as documented is passed over."""

    def __init__(self) -> None:
        self.state = WAITING
        self.why = ""
        self.about: Mapping[str, Any] = {}
        """The fields of `run-begun`."""
        self.begun = self.last = 0.0
        """Times of the first and the last event."""
        self.round = self.rounds = 0
        self.purpose = ""
        self.alone = False
        """Whether the baseline is at work."""
        self.silos: dict[str, SiloView] = {}
        self.lonely: dict[str, SiloView] = {}
        """The same of the baseline."""
        self.seconds: dict[int, float] = {}
        """By round."""
        self.failures: deque[tuple[int, str, str]] = deque(maxlen=MOST_NEWS)
        """Round, silo and reason, the last ones."""
        self.news: deque[tuple[float, str]] = deque(maxlen=MOST_NEWS)
        self.sessions = 0
        """Open at the trunk, at the last gauges."""
        self.waiting = 0
        self.occupancy = 1.0
        self.rates: deque[float] = deque(maxlen=MOST_RATES)
        """Tokens a second of all silos, from gauges to gauges."""
        self.left: list[str] = []
        self.samples = 0
        """How many were written."""
        self._gauged: tuple[float, dict[str, int]] = (0.0, {})

    def take(self, events: Iterable[Event]) -> None:
        """Let events happen, in their order."""
        for event in events:
            known = event.kind in KINDS
            take = getattr(self, f"_{event.kind.replace('-', '_')}", None) if known else None
            if take is None:
                continue
            try:
                take(event.fields, event.time)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # no event of this version's
            self.begun = self.begun or event.time
            self.last = event.time

    @property
    def of_silos(self) -> list[SiloView]:
        """The silos in their order."""
        return sorted(self.silos.values(), key=lambda one: silo_order(one.name))

    @property
    def time_left(self) -> float | None:
        """Seconds that the rounds to come take if they take as long as the last five, in the mean;
        None before the first has ended, or where nothing is to come."""
        known = [self.seconds[number] for number in sorted(self.seconds) if number > 0][-5:]
        if not known or self.state != RUNNING or self.alone:
            return None
        left = self.rounds - max(self.seconds)
        return sum(known) / len(known) * left if left > 0 else None

    def _run_begun(self, told: Mapping[str, Any], time: float) -> None:
        first = _count(told["next_round"])
        resumed = bool(self.about)
        self.about = dict(told)
        self.state, self.why, self.alone = RUNNING, "", False
        self.rounds, self.round = _count(told["rounds"]), max(first - 1, 0)
        self.left = []
        self._forget(self.silos, first)
        for one in self.silos.values():
            one.state, one.why = "silent", ""
        self.seconds = {n: s for n, s in self.seconds.items() if n < first}
        again = f"the run goes on with round {first}" if resumed and first else "the run begins"
        self.news.append((time, again))

    def _baseline_begun(self, told: Mapping[str, Any], time: float) -> None:
        self.alone, self.rounds = True, _count(told["rounds"])
        self._forget(self.lonely, _count(told["next_round"]))
        self.news.append((time, "every silo trains alone, for comparison"))

    def _round_begun(self, told: Mapping[str, Any], time: float) -> None:
        self.round, self.rounds = _count(told["round"]), _count(told["rounds"])

    def _exchange_begun(self, told: Mapping[str, Any], time: float) -> None:
        self.round, self.purpose = _count(told["round"]), str(told["purpose"])
        self._gauged = (0.0, {})
        for one in self.silos.values():
            if one.state != "left":
                one.state, one.steps, one.tokens, one.why = "silent", 0, 0, ""

    def _silo_joined(self, told: Mapping[str, Any], time: float) -> None:
        silo = self._silo(told)
        if not told.get("alone"):
            silo.state = "silent"
            self.news.append((time, f"{silo.name} has joined"))

    def _silo_left(self, told: Mapping[str, Any], time: float) -> None:
        self._note(told, time, "left", "has left: ")

    def _silo_lost(self, told: Mapping[str, Any], time: float) -> None:
        self._note(told, time, "lost", "is lost: ")

    def _silo_began(self, told: Mapping[str, Any], time: float) -> None:
        self._silo(told, now=True).state = "working"

    def _silo_finished(self, told: Mapping[str, Any], time: float) -> None:
        self._silo(told, now=True).state = "done"

    def _silo_round(self, told: Mapping[str, Any], time: float) -> None:
        silo, number = self._silo(told), _count(told["round"])
        trained = told["purpose"] == "train"
        shown = self._silo(told, now=True)
        if not told["counted"]:
            why = str(told["why"])
            shown.state = "lost" if shown.state == "lost" else "refused"
            shown.why = why
            self.failures.append((number, silo.name, why))
            self.news.append((time, f"{silo.name} does not count in round {number}: {why}"))
            return
        shown.state = "done"
        loss = told["metrics"].get(TRAIN_LOSS if trained else EVAL_LOSS)
        if isinstance(loss, (int, float)):
            (silo.train if trained else silo.evaluate)[number] = float(loss)
        counters = told["counters"]
        shown.rate = _number(counters.get("tokens-per-second", shown.rate))
        held = shown.bytes.setdefault(number, {})
        for name, value in counters.items():
            hop = name.removeprefix("bytes-")
            if hop != name and hop not in ("sent", "received"):
                held[hop] = held.get(hop, 0.0) + _number(value)

    def _round_ended(self, told: Mapping[str, Any], time: float) -> None:
        if not told.get("alone"):
            self.seconds[_count(told["round"])] = _number(told["seconds"])

    def _sample_written(self, told: Mapping[str, Any], time: float) -> None:
        self.samples += 1

    def _checkpoint_written(self, told: Mapping[str, Any], time: float) -> None:
        best = ", the best so far" if told["best"] else ""
        self.news.append((time, f"round {_count(told['round'])} is saved{best}"))

    def _gauges(self, told: Mapping[str, Any], time: float) -> None:
        self.sessions = _count(told["sessions"])
        self.waiting, self.occupancy = _count(told["waiting"]), _number(told["occupancy"])
        before, tokens = self._gauged
        now = {str(name): _count(held["tokens"]) for name, held in told["silos"].items()}
        if before and time > before and now:
            gained = {name: count - tokens.get(name, 0) for name, count in now.items()}
            self.rates.append(sum(n for n in gained.values() if n > 0) / (time - before))
            for name, count in gained.items():
                if count >= 0 and name in self.silos:
                    self.silos[name].rate = count / (time - before)
        self._gauged = (time, now)
        for name, held in told["silos"].items():
            silo = self._silo({"silo": name})
            silo.steps, silo.tokens = _count(held["steps"]), _count(held["tokens"])
        self._find_slow()

    def _run_ended(self, told: Mapping[str, Any], time: float) -> None:
        self.state = "failed" if told["state"] == "failed" else "completed"
        self.why = str(told["why"])
        self.left = [str(name) for name in told["left"]]
        self.sessions = self.waiting = 0
        self.alone = False
        self.news.append((time, f"the run has {self.state}"))

    def _find_slow(self) -> None:
        present = [one for one in self.silos.values() if one.state in ("working", "slow")]
        steps = sorted(one.steps for one in present)
        median = steps[len(steps) // 2] if steps else 0
        for one in present:
            late = len(present) > 1 and one.steps < SLOW * median
            one.state = "slow" if late else "working"

    def _note(self, told: Mapping[str, Any], time: float, state: str, words: str) -> None:
        silo = self._silo(told, now=True)
        silo.state, silo.why = state, str(told["why"])
        self.news.append((time, f"{silo.name} {words}{silo.why}"))

    def _silo(self, told: Mapping[str, Any], *, now: bool = False) -> SiloView:
        """Whose event it is: of the run, or of the baseline unless what is `now` is meant."""
        name = str(told["silo"])
        held = self.lonely if told.get("alone") and not now else self.silos
        if name not in held and len(held) >= MOST_SILOS:
            raise ValueError("too many silos")
        return held.setdefault(name, SiloView(name=name))

    @staticmethod
    def _forget(silos: Mapping[str, SiloView], first: int) -> None:
        """What was of rounds from `first` on is void."""
        for one in silos.values():
            one.train = {n: loss for n, loss in one.train.items() if n < first}
            one.evaluate = {n: loss for n, loss in one.evaluate.items() if n < first}
            one.bytes = {n: held for n, held in one.bytes.items() if n < first}


def _count(value: Any) -> int:
    return int(_number(value))


def _number(value: Any) -> float:
    """`value`, which an event tells as a number; `TypeError` where it is something else."""
    if not isinstance(value, (int, float)):
        raise TypeError("no number")
    return value
