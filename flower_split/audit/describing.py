"""What was audited, as a report says it: model, cut, wire, texts, versions, date."""

import datetime
import platform
from importlib import metadata
from pathlib import Path

from flower_split.audit.settings import AuditSettings, Budget
from flower_split.audit.subject import Subject
from flower_split.audit.texts import AuditTexts
from flower_split.config.sections import SplitConfig
from flower_split.config.wire import HOPS, UPWARD_HOPS
from flower_split.errors import ConfigError
from flower_split.privacy import Gaussians
from flower_split.privacy.statement import figures


def described(
    subject: Subject, texts: AuditTexts, settings: AuditSettings, budget: Budget
) -> dict[str, object]:
    """The part `subject` of a report. It has no text, and of files and folders the name alone."""
    config = subject.config
    wire = config.wire
    return {
        "model": _named(config.model.name),
        "revision": config.model.revision,
        "dtype": config.model.dtype,
        "quantization": config.model.quantization,
        "layers": subject.layers,
        "hidden-size": subject.hidden,
        "bottom-layers": config.split.bottom_layers,
        "top-layers": config.split.top_layers,
        "adapter": "at its start" if subject.adapter is None else subject.adapter.name,
        "wire": {
            **{hop: getattr(wire, hop) for hop in HOPS},
            **{f"{hop}-clip": wire.clip_of(hop) for hop in HOPS if wire.clip_of(hop)},
            **{f"{hop}-noise": wire.noise_of(hop) for hop in HOPS if wire.noise_of(hop)},
            "transforms": list(wire.transforms),
        },
        "victims": _named(texts.victims.origin),
        "public-text": _named(texts.public.origin),
        "public-documents": len(texts.public),
        "tokens-a-document": texts.victims.ids.shape[1],
        "seed": settings.seed,
        "budget-minutes": budget.minutes,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers", "peft")},
            "flower-split": metadata.version("flower-split"),
        },
        "noise": _noise(config, texts.victims.ids.shape[1]) + _adapters(config),
    }


def _named(origin: str) -> str:
    """A name without the place where it lies on this machine."""
    try:
        return Path(origin).name if Path(origin).exists() else origin
    except OSError:  # a name that is none of a file
        return origin


def _adapters(config: SplitConfig) -> str:
    """What the attacks on adapters do not see."""
    if not config.dp.noise:
        return ""
    return (
        "; DP-SGD (dp.noise) is not tried: attacks on updates see gradients without its noise, and "
        "canaries are trained without it"
    )


def _noise(config: SplitConfig, tokens: int) -> str:
    """What may be said of the noise at the cuts: a formal figure, however large it is."""
    wire, delta = config.wire, config.privacy_delta
    if not wire.hides:
        return "none at the cuts"
    if bare := [hop for hop in UPWARD_HOPS if not wire.noise_of(hop)]:
        return f"no formal guarantee: {' and '.join(bare)} leaves without noise"
    released = Gaussians()
    for hop in UPWARD_HOPS:
        # Two rows of at most C are at most 2 C apart.
        released = released.released(sensitivity=2.0, deviation=wire.noise_of(hop), times=tokens)
    try:
        told = figures(released.epsilon(delta), delta)
    except ConfigError as error:
        return f"no figure: {error}"
    return (
        f"{told} for h1 and g2 of one pass over one text of {tokens} tokens, replaced by another "
        "of its length; a run's passes add up"
    )
