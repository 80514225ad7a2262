"""A part of the benchmark: one command that measures, and what it leaves behind.

A part is a script in the folder above. Its `measure()` returns a `Report`, at toy size in seconds,
and its command hands that to `publish`, which prints the tables and, as the last line, the ratios;
and writes `NAME.json` and `NAME.png`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from flower_split.private_files import make_folder
from flower_split.reporting import describe_machine

OUTPUTS = Path("outputs/bench-throughput")

Toy = Annotated[bool, typer.Option("--toy", help="Tiny sizes: shows that it runs, no figures.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a part found."""

    ratios: Mapping[str, float]
    """Those that the whole benchmark prints, by name; see `RATIOS` of `run_all.py`."""
    figures: Mapping[str, Any]
    """All figures, as JSON holds them."""
    tables: Sequence[Table]
    """What a reader sees of them."""
    draw: Callable[[Figure], None]
    """Draws them."""


def publish(name: str, report: Report, out: Path, *, toy: bool) -> None:
    """Print `report`, and write its JSON and PNG to `out`."""
    console = Console(width=100)
    for table in report.tables:
        console.print(table)
    make_folder(out)
    stored = {
        "part": name,
        "toy": toy,
        "ratios": dict(report.ratios),
        "figures": dict(report.figures),
        "machine": describe_machine(),
    }
    (out / f"{name}.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    report.draw(figure)
    figure.savefig(out / f"{name}.png", dpi=120)
    print(json.dumps(dict(report.ratios)))
