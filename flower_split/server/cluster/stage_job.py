"""What a stage's actor loads, and what it tells of itself."""

from dataclasses import dataclass, field

from flower_split.config.model import ModelConfig
from flower_split.segments import Cuts
from flower_split.server.compute.queue import Computed
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.stage import Held


@dataclass(frozen=True, kw_only=True, eq=False)
class StageJob:
    """A stage before it is loaded."""

    model: ModelConfig
    """As the stage's machine finds it."""
    dtype: str
    """Of the weights."""
    autocast: str
    """As `trunk.autocast`."""
    device: str
    """Of the actor's own, by its name there."""
    cuts: Cuts
    """Around the stage's layers."""
    is_last: bool
    settings: EngineSettings
    """Of the stage."""
    threads: int
    """Of the CPU that its kernels compute with: sums depend on the number."""


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What a loaded stage tells."""

    first_layer: int
    next_layer: int
    """The one after its last."""
    held: Held
    fingerprint: str
    dtype: str
    device: str
    node: str
    """Address of its machine."""
    version: str
    """Of flower_split there."""
    name: str
    """Of its own, another one each time it is made."""
    pid: int


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """What a stage has to do, and has done since it was made."""

    name: str
    """As in `StageFacts`."""
    waiting: int = 0
    """Passes."""
    computed: Computed = field(default_factory=Computed)
