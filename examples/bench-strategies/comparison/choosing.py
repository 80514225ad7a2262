"""Choosing: the trial of every entry that did best on a seed that is not reported."""

import math
from collections.abc import Iterable

from comparison.entries import Entry, Trial
from comparison.jobs import Job, Notebook, Outcome
from comparison.settings import Settings


def final_loss(outcome: Outcome) -> float:
    """Held-out loss after the last round, in nats a token; infinite where the run failed."""
    if outcome["failure"]:
        return math.inf
    return loss_of(outcome["rounds"][-1])


def loss_of(one_round: Outcome) -> float:
    """The silos' mean in a round, weighted by their held-out examples as Flower does; NaN where
    nothing was evaluated."""
    silos = [silo for silo in one_round["silos"] if silo["loss"] is not None]
    examples = sum(silo["held_out"] for silo in silos)
    return sum(s["loss"] * s["held_out"] for s in silos) / examples if silos else math.nan


def tuning_jobs(entries: Iterable[Entry], settings: Settings) -> list[Job]:
    """A job for every trial of every entry that has no twin."""
    return [
        Job(entry=entry, trial=trial, seed=settings.tuning_seed)
        for entry in entries
        if not entry.twin
        for trial in entry.trials(settings)
    ]


def best_trials(
    entries: Iterable[Entry], settings: Settings, notebook: Notebook
) -> dict[str, Trial]:
    """The best trial of every entry, by its name; a twin has the other one's."""
    entries = list(entries)
    best = {}
    for entry in entries:
        if not entry.twin:
            jobs = tuning_jobs([entry], settings)
            losses = [final_loss(notebook[job.key(settings)]) for job in jobs]
            best[entry.name] = jobs[losses.index(min(losses))].trial
    return best | {entry.name: best[entry.twin] for entry in entries if entry.twin}


def reported_jobs(
    entries: Iterable[Entry], settings: Settings, best: dict[str, Trial]
) -> list[Job]:
    """A job for every entry and seed, with the trial that was chosen."""
    return [
        Job(entry=entry, trial=best[entry.name], seed=seed)
        for seed in settings.seeds
        for entry in entries
    ]
