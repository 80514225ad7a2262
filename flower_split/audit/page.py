"""The report of an audit as a page that needs nothing else: one file, no script, no address."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from flower_split.audit.outcome import (
    INSTRUMENT,
    LEAK,
    PASSED,
    USED_UP,
    VERDICTS,
    AttackResult,
    Outcome,
    SweepPoint,
)
from flower_split.audit.policy import LIMITS
from flower_split.audit.texts import AuditTexts
from flower_split.reporting.report.html import POLICY, style, to_html
from flower_split.reporting.report.sections import (
    Facts,
    Lines,
    Part,
    Prose,
    Section,
    Table,
    Tiles,
    Verbatim,
)

BADGES = {0: "done", 3: "failed", 4: "refused", 5: "left"}
MOST_TEXTS = 32
PARTIES = {
    "T": "the operator of the trunk",
    "A": "the operator of the server, who aggregates the silos' adapters",
    "A+T": "who is both, as in a run without a trunk service",
    "M": "whoever has the final adapter",
}
MEANINGS = {
    PASSED: "These attacks found no more than the policy allows, with this budget and this seed. "
    "It proves no setting private.",
    LEAK: "What the silo sends tells its texts: treat it as the texts themselves, and let nobody "
    "run the trunk who must not see them.",
    INSTRUMENT: "A check of the instrument failed, so that nothing was measured: no figure below "
    "tells of the setting, in either direction.",
    USED_UP: "The time was used up first: what was not run may find more.",
}

Placing = Callable[[SweepPoint], int]


def audit_page(outcome: Outcome, texts: AuditTexts | None = None) -> str:
    """The report as HTML.

    Args:
        outcome: What was found.
        texts: With them it shows what was reconstructed, and must not leave the silo.
    """
    word = VERDICTS[outcome.status]
    sections = [
        Section(title="In short", parts=_short(outcome)),
        Section(title="By adversary", parts=_by_adversary(outcome.attacks)),
        Section(title="Over the cut", parts=_over_depth(outcome.sweep)),
        Section(title="Over the codec", parts=_over_codec(outcome.sweep)),
        Section(title="An adapter's update", parts=_updates(outcome.attacks)),
        Section(title="A hijacking trunk", parts=_hijacked(outcome.attacks)),
        Section(title="Instrument checks", parts=_controls(outcome)),
        Section(title="What was audited", parts=[_subject(outcome)]),
    ]
    if texts is not None:
        sections.append(Section(title="What was reconstructed", parts=_texts(outcome, texts)))
    body = "".join(map(to_html, sections))
    name = str(outcome.subject.get("model", ""))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit: {escape(word)}</title><style>{style()}</style></head><body><main>"
        f'<header><p class="kicker">flower_split audit</p><h1>{escape(name)}</h1>'
        f'<p><span class="badge {BADGES[outcome.status]}">{escape(word)}</span></p></header>'
        f"{body}</main></body></html>\n"
    )


def _short(outcome: Outcome) -> list[Part]:
    limits = outcome.policy.limits
    rows = [
        (
            LIMITS[name],
            _percent(value),
            f"by {key}"
            + (f"; the policy allows {_percent(limits[name])}" if name in limits else ""),
        )
        for name, (value, key) in outcome.strongest().items()
    ]
    meaning = Prose(text=MEANINGS[outcome.status], bad=outcome.status != PASSED)
    parts: list[Part] = [meaning, Tiles(rows=rows), Prose(text=outcome.sentence)]
    for name in outcome.above:
        value, key = outcome.strongest()[name]
        text = f"{LIMITS[name]}: {_percent(value)} by {key}, above {_percent(limits[name])}"
        parts.append(Prose(text=text, bad=True))
    return parts


def _by_adversary(attacks: Sequence[AttackResult]) -> list[Part]:
    """By who can make them; what is found of texts, of labels and of other things apart."""
    if not attacks:
        return []
    parties = list(dict.fromkeys(one.party for one in attacks))
    ordered = sorted(attacks, key=lambda one: parties.index(one.party))
    texts = [
        [
            *_who(one),
            f"{_percent(found.tokens.value)} ({_percent(found.tokens.low)} to "
            f"{_percent(found.tokens.high)})",
            "-" if found.content_tokens is None else _percent(found.content_tokens.value),
            f"{found.rouge_l.value:.2f}",
            _percent(found.documents.value),
            _percent(found.worst_decile),
            "-" if found.identifiers is None else _percent(found.identifiers.value),
        ]
        for one in ordered
        if (found := one.recovery) is not None
    ]
    labels = [
        [*_who(one), _percent(one.labels.value), _percent(one.guess.value)]
        for one in ordered
        if one.labels is not None and one.guess is not None
    ]
    others = [[*_who(one), f"{one.share.value:.2f}"] for one in ordered if one.share is not None]
    known = [[*_who(one), one.knows, f"{one.seconds:.1f}"] for one in ordered]
    of_texts = ("tokens", "content", "ROUGE-L", "whole texts", "worst tenth", "identifiers")
    tables = [
        (("texts", "party", *of_texts), texts),
        (("labels", "party", "labels", "model's guess"), labels),
        (("other", "party", "share"), others),
        (("what is taken as known", "party", "known", "seconds"), known),
    ]
    who = Facts(rows={party: PARTIES[party] for party in sorted(parties, key=[*PARTIES].index)})
    return [who, *(Table(head=head, rows=rows) for head, rows in tables if rows)]


def _who(attack: AttackResult) -> tuple[str, str]:
    return f"{attack.key} {attack.name}", attack.party


def _over_depth(sweep: Sequence[SweepPoint]) -> list[Part]:
    points = [one for one in sweep if one.kind == "depth"]
    if not points:
        return []
    texts = _series(points, ("F1", "F2"), lambda one: one.bottom_layers)
    labels = _series(points, ("B2", "model's own guess"), lambda one: one.top_layers)
    return [
        Lines(
            title="Tokens found over layers before the trunk",
            unit="share",
            series=texts,
            along="layer",
            each="",
            within=(0.0, 1.0),
        ),
        Lines(
            title="Labels found over layers behind the trunk",
            unit="share",
            series=labels,
            along="layer",
            each="",
            within=(0.0, 1.0),
        ),
        _swept(points, "layers before / behind the trunk"),
    ]


def _over_codec(sweep: Sequence[SweepPoint]) -> list[Part]:
    points = [one for one in sweep if one.kind == "codec"]
    return [_swept(points, "codec of all four tensors")] if points else []


def _swept(points: Sequence[SweepPoint], what: str) -> Table:
    names = list(dict.fromkeys(name for one in points for name in one.shares))
    return Table(
        head=(what, *names, "inverter"),
        rows=[
            [
                one.setting if one.kind == "codec" else f"{one.bottom_layers} / {one.top_layers}",
                *(_percent(one.shares[name]) if name in one.shares else "-" for name in names),
                "converged" if one.converged else "under-trained",
            ]
            for one in points
        ],
    )


def _series(
    points: Sequence[SweepPoint], names: Sequence[str], place: Placing
) -> Mapping[str, list[tuple[int, float]]]:
    return {
        name: sorted({place(one): one.shares[name] for one in points if name in one.shares}.items())
        for name in names
        if any(name in one.shares for one in points)
    }


def _updates(attacks: Sequence[AttackResult]) -> list[Part]:
    parts = list[Part]()
    for one in attacks:
        if one.key == "U2":
            parts.append(_matched(one))
        if one.key != "U1":
            continue
        for title, key in (
            ("span check of the gradient", "gradient"),
            ("of what one step of AdamW makes of it", "update-of-adamw"),
        ):
            rows = [
                [
                    str(check["tokens"]),
                    str(check["rank"]),
                    _percent(check["found"]) if check["applicable"] else "inapplicable",
                    _percent(check["false"]),
                ]
                for check in one.detail[key]
            ]
            head = (title, "rank", "tokens found", "other tokens taken for found")
            parts.append(Table(head=head, rows=rows))
    return parts


def _hijacked(attacks: Sequence[AttackResult]) -> list[Part]:
    rows = [
        [
            one.name,
            "-" if one.recovery is None else _percent(one.recovery.tokens.value),
            _percent(one.detail["tokens-on-an-honest-trunk"]),
            f"{one.detail['doubt-before']:.3g} to {one.detail['doubt-after']:.3g} nats",
        ]
        for one in attacks
        if one.key == "H1"
    ]
    head = ("attack", "tokens", "by the inverter of before, on an honest trunk", "its doubt")
    return [Table(head=head, rows=rows)] if rows else []


def _matched(attack: AttackResult) -> Table:
    texts = attack.detail["texts"]
    return Table(
        head=("gradient matching", "steps", "tokens found", "fit of what was found", "of the text"),
        rows=[
            [
                f"text {place + 1}",
                str(one["steps"]),
                f"{one['found']} of {one['tokens']}",
                f"{one['fit']:.3f}",
                f"{one['true_fit']:.3f}",
            ]
            for place, one in enumerate(texts)
        ],
    )


def _controls(outcome: Outcome) -> list[Part]:
    rows = [
        [one.name, "passed" if one.passed else "FAILED", one.measured] for one in outcome.controls
    ]
    digests = {f"recording {name}": digest for name, digest in outcome.recordings.items()}
    return [
        Table(head=("check", "result", "measured"), rows=rows),
        Facts(rows=digests, folded="Digests"),
    ]


def _subject(outcome: Outcome) -> Facts:
    rows = {name: _flat(value) for name, value in outcome.subject.items()}
    policy = outcome.policy
    rows["policy"] = f"{policy.path.name if policy.path else 'the default'}, {policy.sha256}"
    rows["limits"] = _flat(policy.limits)
    rows["seconds"] = f"{outcome.seconds:.0f}, of the processor {outcome.processor_seconds:.0f}"
    return Facts(rows=rows)


def _texts(outcome: Outcome, texts: AuditTexts) -> list[Part]:
    parts: list[Part] = [Prose(text="Texts of the silo: this page must not leave it.", bad=True)]
    for row in range(min(MOST_TEXTS, len(texts.victims))):
        lines = [f"the text: {texts.victim(row)}"]
        for one in outcome.attacks:
            if one.found is None or row >= len(one.found):
                continue
            said = texts.decoded(one.found[row][texts.victims.scored[row]])
            lines.append(f"{one.key} {one.name}: {said}")
        parts.append(Verbatim(text="\n".join(lines), title=f"Text {row + 1}"))
    return parts


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float) -> str:
    return f"{share:.1%}"
