"""Statement: what a run may say of its privacy, in one sentence and its numbers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

MEANINGLESS = 20.0
"""ε above which a guarantee is called none: it allows any conclusion e^20 times as much weight."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One guarantee, or why there is none."""

    kind: str
    """`cut-noise`, `central` or `dp-sgd`."""
    sentence: str
    """What may be said, and nothing beyond it."""
    epsilon: float | None = None
    """None where no guarantee follows."""
    delta: float | None = None
    accountant: str = ""
    releases: Mapping[str, int] | None = None
    """What was counted, by its name."""

    @property
    def fields(self) -> dict[str, object]:
        """As `result.json` holds it."""
        return asdict(self)


def figures(epsilon: float, delta: float) -> str:
    """ε and δ in words, with the warning that a large ε needs."""
    told = f"(ε = {epsilon:.3g}, δ = {delta:.1g})"
    return told if epsilon <= MEANINGLESS else f"{told}, which is no meaningful guarantee,"
