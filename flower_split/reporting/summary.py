"""The summary of a run on a console: what it did for each silo, and what it cost."""

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flower_split.optimization.loss import perplexity
from flower_split.reporting.figures import in_bytes
from flower_split.reporting.result import RunResult

NONE = "-"
MOST_LINES = 4
"""Lines of a generated sample that are printed."""


def print_summary(result: RunResult, console: Console | None = None) -> None:
    """Print `summarise(result)`; on standard output if no console is given."""
    (console or Console()).print(summarise(result))


def summarise(result: RunResult) -> RenderableType:
    """A table with a row a silo, the failures if there were any, and the generated samples."""
    parts: list[RenderableType] = [_table(result)]
    parts += [Text(line, style="red") for line in _failures(result)]
    if result.failure:
        parts.append(Text(f"the run ended early: {result.failure}", style="red"))
    if result.state == "running":
        parts.append(Text("the run goes on, or was killed: these are its rounds so far"))
    parts += [
        Panel(Text(_first_lines(text)), title=title, title_align="left")
        for title, text in _samples(result).items()
    ]
    return Group(*parts)


def _failures(result: RunResult) -> list[str]:
    """A line for every silo and reason, with the rounds in which it did not count."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for one in result.rounds:
        for silo, reason in one.failures.items():
            rounds.setdefault((silo, reason), []).append(one.server_round)
    return [
        f"round{'s' * (len(held) > 1)} {_spans(held)}: silo {silo} did not count: {reason}"
        for (silo, reason), held in rounds.items()
    ]


def _spans(numbers: list[int]) -> str:
    """`0 to 3, 7` for rising numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in spans)


def _table(result: RunResult) -> Table:
    table = Table(title="Perplexity on held-out text, by silo", title_justify="left")
    table.add_column("silo")
    columns = ["before", "after", "change"]
    columns += ["alone"] if result.alone else []
    columns += ["bytes on the wire"] if result.wire_bytes else []
    columns += ["parameters held"] if result.parameter_share else []
    for column in columns:
        table.add_column(column, justify="right")
    for silo in result.silos:
        losses = result.losses(silo)
        alone = result.losses(silo, alone=True)
        row = {
            "before": _perplexity(losses[0][1]) if losses and losses[0][0] == 0 else NONE,
            "after": _perplexity(losses[-1][1]) if losses and losses[-1][0] > 0 else NONE,
            "change": _change(losses),
            "alone": _perplexity(alone[-1][1]) if alone else NONE,
            "bytes on the wire": in_bytes(sum(result.wire_bytes.get(silo, {}).values())),
            "parameters held": (
                f"{result.parameter_share[silo]:.1%}" if silo in result.parameter_share else NONE
            ),
        }
        table.add_row(silo, *(row[column] for column in columns))
    return table


def _samples(result: RunResult) -> dict[str, str]:
    if not result.samples:
        return {}
    first, last = min(result.samples), max(result.samples)
    if first == last:
        return {f"generated through the split, round {last}": result.samples[last]}
    return {
        "generated through the split, before": result.samples[first],
        "generated through the split, after": result.samples[last],
    }


def _perplexity(loss: float) -> str:
    value = perplexity(loss)
    return f"{value:.2f}" if value < 1e4 else f"{value:.3g}"


def _change(losses: list[tuple[int, float]]) -> str:
    if len(losses) < 2 or losses[0][0] > 0:
        return NONE
    ratio = perplexity(losses[-1][1] - losses[0][1])
    return f"{ratio - 1:+.0%}" if ratio < 100 else f"x{ratio:.3g}"


def _first_lines(text: str) -> str:
    """The first lines with anything in them; `result.json` has all."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:MOST_LINES]) + (" …" if lines[MOST_LINES:] else "")
