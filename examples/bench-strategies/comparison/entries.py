"""Entries: what is compared, one row of the table each, and which of its settings are tried."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from comparison.settings import Settings

Trial = Mapping[str, float]
"""Run-config keys and values."""

RATE = "train.learning-rate"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A strategy with silos of equal or of mixed ranks, or something to compare it with."""

    name: str
    how: str = "split"
    """`split` and `unsplit` are federated, `alone` is without averaging, `central` pools the
    data."""
    strategy: str = ""
    """Its `strategy.name`."""
    mixed: bool = False
    personal: bool = False
    """Whether the adapters of the top layers never leave their silo."""
    options: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """An option of the strategy that is tried in place of the learning rate, with its values."""
    twin: str = ""
    """The entry with whose settings it runs, and from which it should not differ."""

    def trials(self, settings: Settings) -> list[Trial]:
        """What is tried: all rates; or, with an option, all its values at the middle rate."""
        if not self.options:
            return [{RATE: rate} for rate in settings.rates]
        middle = settings.rates[len(settings.rates) // 2]
        ((option, values),) = self.options.items()
        return [{RATE: middle, option: value} for value in values[: len(settings.rates)]]


def _equal(name: str) -> Entry:
    return Entry(name=name, strategy=name)


def _mixed(name: str) -> Entry:
    return Entry(name=f"{name}, mixed ranks", strategy=name, mixed=True)


ENTRIES = (
    Entry(name="central", how="central"),
    Entry(name="alone", how="alone"),
    _equal("fedavg"),
    Entry(name="fedadam", strategy="fedadam", options={"strategy.eta": (3e-3, 1e-2, 3e-2)}),
    _equal("fedavglora"),
    Entry(
        name="fedavglora, proximal",
        strategy="fedavglora",
        options={"strategy.proximal-mu": (0.001, 0.01, 0.1)},
    ),
    Entry(name="fedavglora, personal top", strategy="fedavglora", personal=True),
    _equal("scaffoldlora"),
    _equal("fedexlora"),
    _equal("flora"),
    _equal("flexlora"),
    _equal("hetlora"),
    _equal("ffalora"),
    _equal("rolora"),
    _equal("fedsalora"),
    _mixed("flora"),
    _mixed("flexlora"),
    _mixed("hetlora"),
    Entry(name="fedavg, unsplit", how="unsplit", strategy="fedavg", twin="fedavg"),
    Entry(
        name="flexlora, mixed ranks, unsplit",
        how="unsplit",
        strategy="flexlora",
        mixed=True,
        twin="flexlora, mixed ranks",
    ),
)
"""In the order of the table."""

UNTOUCHED = "untouched"
"""The model before the first round."""


def chosen_entries(names: str) -> tuple[Entry, ...]:
    """The entries of those names or strategies, with commas; all for an empty text.

    Raises:
        ValueError: there is none of a name.
    """
    if not names:
        return ENTRIES
    wanted = [name.strip() for name in names.split(",")]
    known = {entry.strategy or entry.name for entry in ENTRIES}
    for name in wanted:
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(sorted(known))}")
    return tuple(entry for entry in ENTRIES if (entry.strategy or entry.name) in wanted)
