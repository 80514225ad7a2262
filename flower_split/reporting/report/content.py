"""What a report says of a run: what was trained, how well, at what cost, and what did not count."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from flower_split.config.tasks import CAUSAL_LM, CLASSIFYING
from flower_split.optimization.loss import perplexity
from flower_split.reporting.cut_text import layers_at_silos
from flower_split.reporting.figures import four_digits, in_bytes, in_seconds
from flower_split.reporting.model_card import public_name
from flower_split.reporting.report.sections import (
    Bars,
    Facts,
    Lines,
    Part,
    Prose,
    Section,
    Table,
    Tiles,
    Verbatim,
)
from flower_split.reporting.result import Counters, RoundResult, RunResult
from flower_split.reporting.usage import usage_code

NONE = "-"
RESULTS = "Results by silo"
MOST_FAILURES = 200
"""Replies that did not count which are listed; of those beyond, the number is told."""
FILES = ("tls.ca", "tls.certificate", "tls.client-ca", "tls.private-key")
"""Keys of files on the server, which are no reader's business."""
HOPS = {
    "h1": "h1, activations to the trunk",
    "h2": "h2, activations from the trunk",
    "g2": "g2, gradients to the trunk",
    "g1": "g1, gradients from the trunk",
    "context": "masks and positions",
}
COST = {
    "seconds-loading": "loading",
    "seconds-connecting": "connecting",
    "queue-seconds": "in the trunk's queue",
    "waiting": "waiting for trunk and network",
    "computing": "the silo itself",
}


def report_sections(result: RunResult) -> list[Section]:
    """The report of `result`, complete or not; sections with nothing in them are left out."""
    made = (
        Section(title="In short", parts=[*_short(result)]),
        by_silo(result),
        Section(title="Losses", parts=[*_losses(result)]),
        Section(title="What did not count", parts=[*_failures(result)]),
        Section(title="Samples", parts=[*_samples(result)]),
        Section(title="Where the time went", parts=[*_time(result)]),
        Section(title="What crossed the wire", parts=[*_bytes(result)]),
        Section(title="Use the result", parts=[*_use(result)]),
        Section(title="How it was trained", parts=[*_training(result)]),
    )
    return [section for section in made if section.parts]


def headline(result: RunResult) -> str:
    """What was trained on what, in a line."""
    model = public_name(str(result.config.get("model.name") or "a model"))
    count = len(result.silos)
    return f"{model}, {count} silo{'s' * (count != 1)}, {_rounds(result)}"


def state(result: RunResult) -> str:
    """`completed`, `failed` or `running`."""
    return result.state or ("failed" if result.failure else "completed")


def by_silo(result: RunResult) -> Section:
    """What the run did for each silo, against the untouched model and against being alone."""
    if not any(result.losses(silo) for silo in result.silos):
        return Section(title=RESULTS, parts=[])
    perplexities = _has_perplexity(result)
    word = "perplexity" if perplexities else "loss"
    columns = ["silo", "examples", f"{word} before", "after", "change"]
    columns += ["alone", "against alone"] if result.alone else []
    rows = [_silo_row(result, silo, perplexities) for silo in result.silos]
    told = (
        f"On each silo's held-out data. Before: the model as it was, without an adapter; {word}, "
    )
    told += "lower is better."
    if result.alone:
        told += " Alone: the same silo, data and steps without the others."
    return Section(title=RESULTS, parts=[Prose(text=told), Table(head=columns, rows=rows)])


def _silo_row(result: RunResult, silo: str, perplexities: bool) -> list[str]:
    losses = result.losses(silo)
    alone = result.losses(silo, alone=True)
    before = losses[0][1] if losses and losses[0][0] == 0 else None
    after = losses[-1][1] if losses and losses[-1][0] > 0 else None
    row = [silo, _examples(result, silo), _shown(before, perplexities), _shown(after, perplexities)]
    row.append(_change(before, after, perplexities))
    if result.alone:
        last = alone[-1][1] if alone else None
        row += [_shown(last, perplexities), _change(last, after, perplexities)]
    return row


def _examples(result: RunResult, silo: str) -> str:
    counts = [one.train[silo].get("num-examples") for one in result.rounds if silo in one.train]
    known = [count for count in counts if isinstance(count, int)]
    return f"{known[-1]:,}" if known else NONE


def _has_perplexity(result: RunResult) -> bool:
    return str(result.config.get("model.task") or CAUSAL_LM) not in CLASSIFYING


def _shown(loss: float | None, perplexities: bool) -> str:
    if loss is None:
        return NONE
    return four_digits(perplexity(loss)) if perplexities else four_digits(loss)


def _change(before: float | None, after: float | None, perplexities: bool) -> str:
    if before is None or after is None:
        return NONE
    if perplexities:
        ratio = perplexity(after - before)
    elif before:
        ratio = after / before
    else:
        return NONE
    return f"{ratio - 1:+.1%}" if ratio < 100 else f"x{ratio:.3g}"


def _short(result: RunResult) -> Iterator[Part]:
    if result.failure:
        yield Prose(text=f"The run ended early: {result.failure}", bad=True)
    if state(result) == "running":
        text = "The run has not ended, or its process was killed: these are its rounds so far."
        yield Prose(text=text, bad=True)
    before, after = (_aggregated(result, first=first) for first in (True, False))
    tiles = []
    for name in _metrics(before, after):
        was, now = before.get(name), after.get(name)
        if now is not None:
            tiles.append(
                (name, four_digits(now), f"{four_digits(was)} before" if was is not None else "")
            )
    sent = sum(sum(held.values()) for held in result.wire_bytes.values())
    tiles.append(("rounds", _rounds(result).split()[0], ""))
    tiles.append(("time", in_seconds(result.seconds), ""))
    if sent:
        tiles.append(("on the wire", in_bytes(sent), "both ways, all silos"))
    yield Tiles(rows=tiles)


def _aggregated(result: RunResult, *, first: bool) -> dict[str, float]:
    """The silos' averages of the evaluation before the first round, or of the last one."""
    rounds = [one for one in result.rounds if one.evaluate and (one.server_round == 0) == first]
    held = rounds[-1].aggregated if rounds else {}
    return {
        name: float(value)
        for name, value in held.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _metrics(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Metrics of the evaluation; what only the training gives is in the charts."""
    names = dict.fromkeys([*before, *after])
    return [n for n in names if not n.startswith("train-") and n != "num-examples"]


def _losses(result: RunResult) -> Iterator[Part]:
    for title, evaluate in (("held-out loss", True), ("training loss", False)):
        series = {silo: result.losses(silo, evaluate=evaluate) for silo in result.silos}
        alone = {silo: result.losses(silo, evaluate=evaluate, alone=True) for silo in result.silos}
        chart = Lines(
            title=title,
            unit="nats per token" if _has_perplexity(result) else "nats",
            series={silo: points for silo, points in series.items() if points},
            dashed={silo: points for silo, points in alone.items() if points},
        )
        if chart.series:
            yield chart


def _failures(result: RunResult) -> Iterator[Part]:
    rows = [
        [str(one.server_round), silo, reason]
        for one in result.rounds
        for silo, reason in one.failures.items()
    ]
    if rows:
        yield Table(
            head=["round", "silo", "why its reply did not count"], rows=rows[:MOST_FAILURES]
        )
    if len(rows) > MOST_FAILURES:
        yield Prose(text=f"and {len(rows) - MOST_FAILURES} more, all in result.json")


def _samples(result: RunResult) -> Iterator[Part]:
    if result.samples:
        first, last = min(result.samples), max(result.samples)
        for number in dict.fromkeys((first, last)):
            title = "before training" if number == 0 else f"after round {number}"
            yield Verbatim(text=result.samples[number], title=title)


def _time(result: RunResult) -> Iterator[Part]:
    """By silo: the seconds of its sessions, as its and the trunk's counters divide them."""
    totals: dict[str, dict[str, float]] = {}
    for silo, counters in _all_counters(result.rounds):
        held = totals.setdefault(silo, dict.fromkeys(COST.values(), 0.0))
        for name, value in _divided(counters).items():
            held[COST[name]] += value
    if any(sum(held.values()) for held in totals.values()):
        yield Bars(title="seconds of all sessions, by silo", unit="seconds", rows=totals)
    rounds = [one for one in result.rounds if one.seconds]
    if rounds:
        longest = max(rounds, key=lambda one: one.seconds)
        total = sum(one.seconds for one in rounds)
        yield Prose(
            text=f"The rounds took {in_seconds(total)} of {in_seconds(result.seconds)}; the "
            f"longest was round {longest.server_round} with {in_seconds(longest.seconds)}."
        )


def _divided(counters: Counters) -> dict[str, float]:
    """A session's seconds in the parts of `COST`, none of which is below 0."""
    queue = float(counters.get("queue-seconds", 0.0))
    waited = float(counters.get("seconds-waiting", 0.0))
    # Passes that wait at the same time are in the queue's seconds each.
    queued = min(queue, waited)
    parts = {
        "seconds-loading": float(counters.get("seconds-loading", 0.0)),
        "seconds-connecting": float(counters.get("seconds-connecting", 0.0)),
        "queue-seconds": queued,
        "waiting": waited - queued,
    }
    rest = float(counters.get("seconds", 0.0)) - sum(parts.values())
    return {**parts, "computing": max(0.0, rest)}


def _all_counters(rounds: Sequence[RoundResult]) -> Iterator[tuple[str, Counters]]:
    for one in rounds:
        yield from chain(one.train_counters.items(), one.evaluate_counters.items())


def _bytes(result: RunResult) -> Iterator[Part]:
    rows = {
        silo: {HOPS.get(hop, hop): float(count) for hop, count in held.items() if count}
        for silo, held in result.wire_bytes.items()
    }
    if any(rows.values()):
        yield Bars(title="payload of the run, by silo and hop", unit="bytes", rows=rows)
    if any(result.delivery_bytes.values()):
        told = {silo: in_bytes(count) for silo, count in result.delivery_bytes.items()}
        yield Prose(text="Downloaded of the model:")
        yield Facts(rows=told)


def _use(result: RunResult) -> Iterator[Part]:
    if not any(one.server_round > 0 and one.train for one in result.rounds):
        return
    config = result.config
    base = public_name(str(config.get("model.name") or ""))
    code = usage_code(base, result.prompt_format, task=str(config.get("model.task") or CAUSAL_LM))
    text = (
        "The folder adapter beside this report is a PEFT adapter of the whole model, with a model "
        "card. flower-split export writes another round, a silo's personal variant, or the merged "
        "model."
    )
    yield Prose(text=text)
    if code:
        yield Verbatim(text=code, language="python")


def _training(result: RunResult) -> Iterator[Part]:
    config = result.config

    def told(key: str, otherwise: str) -> str:
        return str(config.get(key) or otherwise)

    facts = {
        "base model": public_name(told("model.name", NONE)),
        "task": told("model.task", CAUSAL_LM),
        "layers with the silos": "{} bottom, {} top".format(*layers_at_silos(config)),
        "method": _method(config),
        "adapters of the layers between": told("trunk.adapters", "federated"),
        "strategy": told("strategy.name", "fedavg"),
        "prompt": result.prompt_format.get("template", ""),
    }
    share = result.parameter_share
    if share:
        facts["of the parameters with a silo"] = f"{max(share.values()):.1%} at most"
    yield Facts(rows={name: value for name, value in facts.items() if value})
    given = {key: str(value) for key, value in sorted(config.items()) if key not in FILES}
    if given:
        yield Facts(rows=given, folded="All settings that were given")
    if result.versions:
        yield Facts(rows=dict(result.versions), folded="Versions")


def _method(config: Mapping[str, Any]) -> str:
    method = str(config.get("peft.type") or "LORA")
    if method.upper() != "LORA":
        return method
    r, alpha = config.get("lora.r", 8), config.get("lora.alpha", 16.0)
    return f"LoRA, r = {r}, alpha = {alpha}"


def _rounds(result: RunResult) -> str:
    last = max((one.server_round for one in result.rounds), default=0)
    wanted = result.config.get("num-server-rounds")
    of = f" of {wanted}" if isinstance(wanted, int) and wanted != last else ""
    return f"{last}{of} round{'s' * (last != 1)}"
