"""Settings: the task on which everything is compared, the same for all entries."""

import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flower_split.quickstart import BASE_MODEL


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Model, data, silos and budget of every run."""

    model: str = BASE_MODEL
    """As `model.name`."""
    data: str
    """A `.jsonl` file with all silos' examples."""
    text: str = "text"
    """Field with the text to learn."""
    prompt: str = ""
    """Field with the prompt, which gets no loss; empty for none."""
    label: str = ""
    """Field by which silos differ; empty for silos that do not differ."""
    alpha: float = 0.3
    """Concentration of the Dirichlet distribution of the labels; smaller is less alike."""
    eval_fraction: float = 0.1
    """Share of every silo's examples that it is tested on."""
    silos: int = 4
    rounds: int = 6
    steps: int = 4
    """Optimizer steps of a silo in a round."""
    batch_size: int = 8
    max_length: int = 64
    """Tokens at which a text is cut off."""
    bottom: int = 2
    top: int = 2
    """Layers of the silos below and above the trunk; the top ones are the personal modules."""
    rank: int = 8
    """Of all silos, where they are equal."""
    mixed_ranks: tuple[int, ...] = (4, 8, 16)
    """Of the silos in turn, where they are not. Alpha is twice the rank everywhere."""
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Learning rates that are tried."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs that are reported."""
    tuning_seed: int = 100
    """Of the runs by which a learning rate is chosen."""

    def rank_of(self, silo: int, *, mixed: bool) -> int:
        """Rank of a silo's adapter."""
        return self.mixed_ranks[silo % len(self.mixed_ranks)] if mixed else self.rank

    def of_one_run(self) -> dict[str, Any]:
        """What a single run depends on: with another value its result is another one."""
        fields = asdict(self)
        for chosen_among in ("rates", "seeds", "tuning_seed"):
            del fields[chosen_among]
        return fields | {"data": _digest(self.data)}


def toy(settings: Settings) -> Settings:
    """A task of seconds, which shows that everything runs."""
    return Settings(
        **{
            **asdict(settings),
            "silos": 2,
            "rounds": 2,
            "steps": 1,
            "batch_size": 2,
            "max_length": 12,
            "mixed_ranks": (2, 4),
            "rank": 4,
            "rates": (1e-2,),
            "seeds": (0, 1),
        }
    )


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
