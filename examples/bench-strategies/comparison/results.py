"""Results: what the runs of every entry found, over the seeds, as plain numbers."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from comparison.choosing import final_loss, loss_of, reported_jobs
from comparison.entries import UNTOUCHED, Entry, Trial
from comparison.jobs import Job, Notebook, Outcome
from comparison.settings import Settings
from flower_split.lowrank import Factors, combined, pair_up

BASELINE = "fedavg"
"""The entry that the others are compared with, seed by seed."""


def collect(
    entries: Sequence[Entry],
    settings: Settings,
    best: Mapping[str, Trial],
    notebook: Notebook,
    adapters: Path,
) -> list[dict[str, Any]]:
    """A row an entry, and one for the untouched model."""
    found: dict[str, list[Outcome]] = {entry.name: [] for entry in entries}
    files: dict[tuple[str, int], Path] = {}
    for job in reported_jobs(entries, settings, dict(best)):
        found[job.entry.name].append(notebook[job.key(settings)])
        files[job.entry.name, job.seed] = adapters / f"{job.key(settings)}.safetensors"
    baseline = [final_loss(outcome) for outcome in found.get(BASELINE, [])]
    rows = [_untouched(found.values(), baseline)]
    for entry in entries:
        row = _row(entry, best[entry.name], found[entry.name], baseline)
        if entry.twin:
            row["difference_of_updates"] = max(
                _difference(files[entry.name, seed], files[entry.twin, seed], settings, entry)
                for seed in settings.seeds
            )
            row["difference_of_losses"] = max(
                abs(final_loss(one) - final_loss(other))
                for one, other in zip(found[entry.name], found[entry.twin], strict=True)
            )
        rows.append(row)
    return rows


def tried(
    jobs: Iterable[Job], settings: Settings, notebook: Notebook
) -> dict[str, list[dict[str, Any]]]:
    """What every trial of every entry ended with, by the entry's name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        outcome = notebook[job.key(settings)]
        found.setdefault(job.entry.name, []).append(
            {**job.trial, "loss": _finite(final_loss(outcome)), "failure": outcome["failure"]}
        )
    return found


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Of the finite values; the deviation is the sample's, and None for a single value."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return None, None
    return statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else None


def _untouched(runs: Iterable[Sequence[Outcome]], baseline: Sequence[float]) -> dict[str, Any]:
    """The row of the model before the first round, from any entry that was evaluated then."""
    for outcomes in runs:
        if outcomes and all(not o["failure"] and o["rounds"][0]["round"] == 0 for o in outcomes):
            losses = [loss_of(outcome["rounds"][0]) for outcome in outcomes]
            return {"name": UNTOUCHED, "how": "", **_losses(losses, baseline)}
    return {"name": UNTOUCHED, "how": "", **_losses([], baseline)}


def _row(
    entry: Entry, trial: Trial, outcomes: Sequence[Outcome], baseline: Sequence[float]
) -> dict[str, Any]:
    complete = [outcome for outcome in outcomes if not outcome["failure"]]
    row = {
        "name": entry.name,
        "how": entry.how,
        "mixed": entry.mixed,
        "trial": dict(trial),
        "failures": [outcome["failure"] for outcome in outcomes if outcome["failure"]],
        **_losses([final_loss(outcome) for outcome in outcomes], baseline),
        "by_round": [
            [[one["round"], loss] for one in outcome["rounds"] if (loss := loss_of(one)) == loss]
            for outcome in complete
        ],
        "by_silo": [
            [silo["loss"] for silo in outcome["rounds"][-1]["silos"]] for outcome in complete
        ],
        "held_out": [
            [silo["held_out"] for silo in outcome["rounds"][-1]["silos"]] for outcome in complete
        ],
        "run_seconds": [outcome["seconds"] for outcome in outcomes],
    }
    if entry.how != "central":
        for name in ("down", "up", "stream"):
            row[name] = _bytes(complete, name)
            row[f"{name}_last"] = _bytes(complete, name, last=True)
        seconds = [s for outcome in complete for s in outcome["server_seconds"]]
        row["server_seconds"] = statistics.median(seconds) if seconds else None
    return row


def _losses(losses: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    mean, deviation = mean_and_deviation(losses)
    paired = [a - b for a, b in zip(losses, baseline, strict=False)]
    to_mean, to_deviation = mean_and_deviation(paired)
    return {
        "losses": [_finite(loss) for loss in losses],
        "loss": mean,
        "deviation": deviation,
        "to_baseline": to_mean,
        "to_baseline_deviation": to_deviation,
    }


def _bytes(outcomes: Sequence[Outcome], name: str, *, last: bool = False) -> float | None:
    """Mean over silos and rounds, or over the silos in the last round.

    The first round is left out where there are others: what is zero there takes no bytes twice.
    """
    values = [
        silo[name]
        for outcome in outcomes
        for one in outcome["rounds"][-1 if last else 0 :]
        for silo in one["silos"]
        if one["round"] > min(1, outcome["rounds"][-1]["round"] - 1)
    ]
    return statistics.fmean(values) if values else None


def _difference(ours: Path, theirs: Path, settings: Settings, entry: Entry) -> float:
    """The largest difference of the model's update in any module, over its largest element."""
    rank = max(settings.rank_of(silo, mixed=entry.mixed) for silo in range(settings.silos))
    scale = 2.0 * rank / rank
    mine, other = (combined(load_file(path), scale) for path in (ours, theirs))
    worst = 0.0
    for pair in pair_up(mine):
        a, b = (
            Factors(a=state[pair.a].double(), b=state[pair.b].double()).product()
            for state in (mine, other)
        )
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)))
    return worst


def _finite(loss: float) -> float | None:
    return loss if loss == loss and abs(loss) != float("inf") else None
