"""The silo's side of the cut: the layer that stands for the trunk, and the two-sided optimizer."""

from flower_split.remote.attach import attach_trunk
from flower_split.remote.optimizer import SplitAdamW
from flower_split.remote.spec import session_spec
from flower_split.remote.stages import SplitStages
from flower_split.remote.trunk import RemoteTrunk, find_remote

__all__ = [
    "RemoteTrunk",
    "SplitAdamW",
    "SplitStages",
    "attach_trunk",
    "find_remote",
    "session_spec",
]
