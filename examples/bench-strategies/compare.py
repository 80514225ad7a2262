"""All strategies on the same silos of real text: loss, bytes and the server's time.

First every entry is tried with each learning rate on a seed that is not reported, then it runs with
the best one on every reported seed. Leaves `table.md`, `losses.png` and `results.json` in the
folder, and every run in `runs.jsonl`, from which a stopped benchmark goes on.
"""

import json
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from comparison.choosing import best_trials, reported_jobs, tuning_jobs
from comparison.corpus import LABEL, write_docstrings
from comparison.entries import Entry, chosen_entries
from comparison.jobs import Notebook, finish
from comparison.report import draw, table
from comparison.results import collect, tried
from comparison.settings import Settings, toy

from flower_split.quickstart import BASE_MODEL
from flower_split.reporting import describe_machine

OUTPUTS = Path("outputs/bench-strategies")
DEFAULTS = Settings(data="")


def compare(
    entries: tuple[Entry, ...], settings: Settings, out: Path, *, workers: int, is_toy: bool = False
) -> list[dict[str, Any]]:
    """Run what is not in `out` yet, and write the results there; returns the table's rows."""
    start = time.monotonic()
    notebook = Notebook(out / "runs.jsonl")
    adapters = out / "adapters"

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True)

    tuning = tuning_jobs(entries, settings)
    finish(tuning, settings, notebook, adapters, workers=workers, say=say)
    best = best_trials(entries, settings, notebook)
    reported = reported_jobs(entries, settings, best)
    finish(reported, settings, notebook, adapters, workers=workers, say=say)
    rows = collect(entries, settings, best, notebook, adapters)
    stored = {
        "toy": is_toy,
        "settings": asdict(settings) | {"data": Path(settings.data).name},
        "machine": describe_machine(),
        "workers": workers,
        "seconds": round(time.monotonic() - start),
        "rows": rows,
        "tried": tried(tuning, settings, notebook),
    }
    (out / "results.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table(rows), encoding="utf-8")
    draw(rows, out / "losses.png")
    return rows


def main(
    strategies: Annotated[
        str, typer.Option(help="Names as of strategy.name, alone or central; with commas.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="How many runs of each.")] = len(DEFAULTS.seeds),
    rounds: int = DEFAULTS.rounds,
    steps: Annotated[int, typer.Option(help="A silo's steps in a round.")] = DEFAULTS.steps,
    silos: int = DEFAULTS.silos,
    model: Annotated[str, typer.Option(help="A folder or a Hugging Face id.")] = BASE_MODEL,
    bottom: Annotated[int, typer.Option(help="Layers below the trunk.")] = DEFAULTS.bottom,
    top: Annotated[int, typer.Option(help="Layers above the trunk.")] = DEFAULTS.top,
    data: Annotated[str, typer.Option(help="A .jsonl file; empty: docstrings.")] = "",
    text: Annotated[str, typer.Option(help="Field with the text to learn.")] = DEFAULTS.text,
    prompt: Annotated[str, typer.Option(help="Field with the prompt; empty for none.")] = "",
    label: Annotated[str, typer.Option(help="Field by which silos differ; empty: iid.")] = "",
    alpha: Annotated[float, typer.Option(help="Smaller: less alike.")] = DEFAULTS.alpha,
    max_length: int = DEFAULTS.max_length,
    batch_size: int = DEFAULTS.batch_size,
    rank: int = DEFAULTS.rank,
    mixed_ranks: Annotated[str, typer.Option(help="Silos take them in turn.")] = ",".join(
        map(str, DEFAULTS.mixed_ranks)
    ),
    rates: Annotated[str, typer.Option(help="Learning rates to try.")] = ",".join(
        map(str, DEFAULTS.rates)
    ),
    workers: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
    toy_size: Annotated[
        bool, typer.Option("--toy", help="Tiny sizes: shows that it runs, no figures.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = OUTPUTS,
) -> None:
    """Compare the strategies, and print the table."""
    try:
        entries = chosen_entries(strategies)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not data:
        path = out / "docstrings.jsonl"
        write_docstrings(path, 12 if toy_size else None)
        data, label = str(path.resolve()), label or LABEL
    settings = Settings(
        model=model,
        data=data,
        text=text,
        prompt=prompt,
        label=label,
        alpha=alpha,
        silos=silos,
        rounds=rounds,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        bottom=bottom,
        top=top,
        rank=rank,
        mixed_ranks=tuple(int(one) for one in mixed_ranks.split(",")),
        rates=tuple(float(one) for one in rates.split(",")),
        seeds=tuple(range(seeds)),
    )
    if toy_size:
        settings = replace(toy(settings), seeds=settings.seeds[:2])
    signal.signal(signal.SIGTERM, _interrupted)
    print(table(compare(entries, settings, out, workers=workers, is_toy=toy_size)))
    print(f"saved in {out}")


def _interrupted(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
