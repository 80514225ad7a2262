"""Checkpoints: a run's state on disk, whole or not at all, and what it is made of.

Named arrays and plain JSON only; nothing is pickled, and nothing here knows Flower or a model.
"""

from flower_split.checkpoint.archive import Checkpoint, read_checkpoint
from flower_split.checkpoint.freezing import Frozen, Lost, freeze
from flower_split.checkpoint.store import CheckpointStore, find_checkpoint
from flower_split.checkpoint.thawing import thaw

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Frozen",
    "Lost",
    "find_checkpoint",
    "freeze",
    "read_checkpoint",
    "thaw",
]
