"""The parts of the live page, by the id of the element that shows each. All is escaped."""

import datetime
from collections.abc import Mapping
from html import escape
from typing import Any

from flower_split.reporting.cut_text import layers_at_silos
from flower_split.reporting.figures import four_digits, in_bytes, in_seconds
from flower_split.reporting.live.view import RUNNING, WAITING, RunView, SiloView
from flower_split.reporting.report.charts import bar_chart, line_chart, sparkline
from flower_split.reporting.report.content import HOPS
from flower_split.reporting.report.html import parts_html, table_html
from flower_split.reporting.report.sections import Bars, Lines, Tiles, Verbatim

QUIET = 60.0
"""Seconds without an event after which a run that goes on is called quiet."""
AT_WORK = {"working", "slow"}
HEADS = ("silo", "state", "steps", "tokens/s", "training loss", "held-out loss", "on the wire")


def fragments(
    view: RunView, samples: Mapping[int, str], *, now: float, problem: str = ""
) -> dict[str, str]:
    """Every part of the page.

    Args:
        view: The run.
        samples: Text by round, of `result.json`.
        now: Seconds since 1970.
        problem: Why the run cannot be read; empty where it can.
    """
    return {
        "top": _top(view, now, problem),
        "tiles": _tiles(view, now),
        "silos": _silos(view),
        "losses": _losses(view),
        "rates": _rates(view),
        "bytes": _bytes(view),
        "failures": _failures(view),
        "samples": _samples(samples),
        "news": _news(view),
    }


def _layers(about: Mapping[str, Any]) -> tuple[str, str]:
    """Bottom and top layers, by the run's settings where they leave a choice."""
    ends = ("bottom", "top")
    config = about.get("config")
    most = config if isinstance(config, Mapping) else {}
    settings = {f"split.max-{end}-layers": most.get(f"split.max-{end}-layers", 0) for end in ends}
    return layers_at_silos(
        settings | {f"split.{end}-layers": about[f"{end}_layers"] for end in ends}
    )


def _top(view: RunView, now: float, problem: str) -> str:
    model = str(view.about.get("model") or "A run")
    told = [str(view.about[key]) for key in ("method", "strategy") if key in view.about]
    if {"bottom_layers", "top_layers"} <= view.about.keys():
        told.append("{} + {} layers at silos".format(*_layers(view.about)))
    lines = [f'<p class="bad">{escape(problem)}</p>'] if problem else []
    if view.state == WAITING and not problem:
        lines.append("<p>Nothing has been written yet: the model loads, or the run waits.</p>")
    if view.why:
        lines.append(f'<p class="bad">{escape(view.why)}</p>')
    quiet = now - view.last
    if view.state == RUNNING and quiet > QUIET:
        lines.append(
            f'<p class="bad">Nothing has happened for {_coarse(quiet)}: the run waits for silos, '
            "or its process was killed.</p>"
        )
    if view.left:
        lines.append(f"<p>Left in its folder: {escape(', '.join(view.left))}</p>")
    return (
        f'<p class="kicker">flower_split</p><h1>{escape(model)}</h1>'
        f'<p><span class="badge {view.state}">{view.state}</span> '
        f"<small>{escape('; '.join(told))}</small></p>{''.join(lines)}"
    )


def _tiles(view: RunView, now: float) -> str:
    if view.state == WAITING:
        return ""
    going = view.state == RUNNING
    doing = {"train": "training", "evaluate": "evaluation"}.get(view.purpose, "")
    phase = ("alone: " if view.alone else "") + doing if going else ""
    rows = [("round", f"{view.round} of {view.rounds}", phase)]
    spent = (now if going else view.last) - view.begun
    left = view.time_left
    rows.append(("time", _coarse(spent), f"about {_coarse(left)} left" if left else ""))
    here = [one for one in view.silos.values() if one.state != "left"]
    busy = sum(one.state in AT_WORK for one in here)
    rows.append(("silos", str(len(here)), f"{busy} at work" if going else ""))
    losses = _mean_losses(view)
    if losses:
        first = f"{four_digits(losses[min(losses)])} before" if 0 in losses else ""
        rows.append(("held-out loss", four_digits(losses[max(losses)]), first))
    if view.rates:
        rows.append(("tokens a second", four_digits(view.rates[-1]), "all silos"))
    sent = sum(sum(sum(h.values()) for h in one.bytes.values()) for one in view.silos.values())
    if sent:
        rows.append(("on the wire", in_bytes(sent), "both ways"))
    if going:
        rows.append(("trunk's queue", str(view.waiting), f"batch x {four_digits(view.occupancy)}"))
    return parts_html([Tiles(rows=rows)])


def _mean_losses(view: RunView) -> dict[int, float]:
    """By round, over the silos that told one."""
    found: dict[int, list[float]] = {}
    for one in view.silos.values():
        for number, loss in one.evaluate.items():
            found.setdefault(number, []).append(loss)
    return {number: sum(held) / len(held) for number, held in found.items()}


def _silos(view: RunView) -> str:
    if not view.silos:
        return ""
    rows = "".join(_silo_row(one) for one in view.of_silos)
    top = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    return _section(
        "Silos",
        f'<div class="scroll" tabindex="0"><table class="silos"><thead><tr>{top}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>",
    )


def _silo_row(one: SiloView) -> str:
    why = f"<br><small>{escape(one.why)}</small>" if one.why else ""
    held = sum(sum(hops.values()) for hops in one.bytes.values())
    cells = [
        str(one.steps or "-"),
        four_digits(one.rate) if one.rate else "-",
        _last(one.train),
        _last(one.evaluate),
        in_bytes(held) if held else "-",
    ]
    return (
        f'<tr><th scope="row">{escape(one.name)}</th>'
        f'<td><span class="badge {one.state}">{one.state}</span>{why}</td>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
    )


def _last(losses: Mapping[int, float]) -> str:
    return four_digits(losses[max(losses)]) if losses else "-"


def _losses(view: RunView) -> str:
    charts = []
    for title, of in (("held-out loss", "evaluate"), ("training loss", "train")):
        series, dashed = (
            {one.name: sorted(getattr(one, of).items()) for one in silos.values()}
            for silos in (view.silos, view.lonely)
        )
        chart = Lines(
            title=title,
            unit="nats",
            series={silo: points for silo, points in series.items() if points},
            dashed={silo: points for silo, points in dashed.items() if points},
        )
        charts.append(line_chart(chart))
    body = "".join(charts)
    return _section("Losses", f'<div class="charts">{body}</div>') if body else ""


def _rates(view: RunView) -> str:
    line = sparkline([*view.rates], "tokens a second")
    told = f"<p><small>at most {four_digits(max(view.rates, default=0.0))}</small></p>"
    return _section("Tokens a second", line + told) if line else ""


def _bytes(view: RunView) -> str:
    rows: dict[str, dict[str, float]] = {}
    for one in view.silos.values():
        held = rows.setdefault(one.name, {})
        for hops in one.bytes.values():
            for hop, count in hops.items():
                if count:
                    name = HOPS.get(hop, hop)
                    held[name] = held.get(name, 0.0) + count
    body = bar_chart(Bars(title="payload so far, by silo and hop", unit="bytes", rows=rows))
    return _section("What crossed the wire", body) if body else ""


def _failures(view: RunView) -> str:
    rows = [[str(number), silo, why] for number, silo, why in reversed(view.failures)]
    table = table_html(["round", "silo", "why its reply did not count"], rows)
    return _section("What did not count", table) if rows else ""


def _samples(samples: Mapping[int, str]) -> str:
    if not samples:
        return ""
    shown = dict.fromkeys((min(samples), max(samples)))
    parts = [
        Verbatim(text=samples[n], title="before training" if n == 0 else f"after round {n}")
        for n in shown
    ]
    return _section("Samples", parts_html(parts))


def _news(view: RunView) -> str:
    items = "".join(
        f"<li><time>{_clock(time)}</time> {escape(text)}</li>"
        for time, text in [*reversed(view.news)][:15]
    )
    return _section("What happened", f'<ul class="news">{items}</ul>') if items else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _clock(time: float) -> str:
    try:
        at = datetime.datetime.fromtimestamp(time, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return f"{at:%H:%M:%S} UTC"


def _coarse(seconds: float) -> str:
    return in_seconds(seconds) if seconds >= 60 else f"{max(0.0, seconds):.0f} s"
