"""The report: a table in Markdown, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparison.entries import RATE, UNTOUCHED
from comparison.results import BASELINE
from flower_split.private_files import make_folder

Row = Mapping[str, Any]
NONE = ""


def table(rows: Sequence[Row]) -> str:
    """A line a row, ordered as they are."""
    head = [
        "entry",
        "held-out loss",
        f"over `{BASELINE}`, same seeds",
        "kB down",
        "kB up",
        "stream, MB",
        "server, ms",
        "learning rate, options",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 2) + "|---|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Final losses with their deviations, and losses by round, into a PNG at `path`."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    bars, curves = figure.subplots(1, 2, width_ratios=(3, 4))
    shown = [row for row in rows if row["loss"] is not None and row["how"] != "unsplit"]
    trained = [row for row in shown if row["name"] != UNTOUCHED]
    names = [row["name"] for row in trained]
    bars.errorbar(
        [row["loss"] for row in trained],
        names,
        xerr=[row["deviation"] or 0.0 for row in trained],
        fmt="o",
        capsize=3,
        color="k",
    )
    bars.invert_yaxis()
    for row in shown:
        if row["name"] == UNTOUCHED:
            bars.axvline(row["loss"], color="k", linestyle=":", label="untouched")
            bars.legend()
    bars.set_xlabel("held-out loss after the last round, nats a token; mean and deviation")
    bars.grid(alpha=0.3)
    styles = ("-", "--", ":", "-.")
    for index, row in enumerate(trained):
        by_round = _mean_by_round(row["by_round"])
        curves.plot(
            list(by_round),
            list(by_round.values()),
            color=f"C{index % 10}",
            linestyle=styles[index // 10 % len(styles)],
            label=row["name"],
        )
    curves.set_xlabel("round")
    curves.set_ylabel("held-out loss, nats a token; mean over the seeds")
    curves.grid(alpha=0.3)
    if trained:
        curves.legend(fontsize="small", ncols=2)
    make_folder(path.parent)
    figure.savefig(path, dpi=120)


def _cells(row: Row) -> list[str]:
    loss = _with_deviation(row["loss"], row["deviation"])
    failures = row.get("failures") or []
    if failures:
        loss += f" ({len(failures)} of {len(row['losses'])} runs failed)"
    over = _with_deviation(row["to_baseline"], row["to_baseline_deviation"], sign="+")
    trial = row.get("trial", {})
    told = [f"{trial[RATE]:g}"] if RATE in trial else []
    told += [f"{key.split('.')[1]} {value:g}" for key, value in trial.items() if key != RATE]
    return [
        row["name"],
        loss,
        NONE if row["name"] == BASELINE else over,
        _growing(row.get("down"), row.get("down_last"), 1e3),
        _growing(row.get("up"), row.get("up_last"), 1e3),
        f"{row['stream'] / 1e6:.2f}" if row.get("stream") else NONE,
        f"{row['server_seconds'] * 1e3:.1f}" if row.get("server_seconds") is not None else NONE,
        ", ".join(told),
    ]


def _with_deviation(mean: float | None, deviation: float | None, sign: str = "") -> str:
    if mean is None:
        return NONE
    return f"{mean:{sign}.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def _growing(mean: float | None, last: float | None, unit: float) -> str:
    """The mean, and the last round's where it differs by a twentieth or more."""
    if mean is None or last is None:
        return NONE
    text = f"{mean / unit:.0f}"
    return f"{text} (last {last / unit:.0f})" if abs(last - mean) > mean / 20 else text


def _mean_by_round(runs: Sequence[Sequence[Sequence[float]]]) -> dict[int, float]:
    by_round: dict[int, list[float]] = {}
    for run in runs:
        for number, loss in run:
            by_round.setdefault(int(number), []).append(loss)
    return {number: sum(found) / len(found) for number, found in sorted(by_round.items())}
