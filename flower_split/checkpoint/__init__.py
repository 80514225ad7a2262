"""Checkpoints: a run's state on disk, whole or not at all, and what it is made of.

Named arrays and plain JSON only; nothing is pickled, and nothing here knows Flower or a model.
"""

from flower_split.checkpoint.archive import Checkpoint, read_checkpoint
from flower_split.checkpoint.decoding import decode
from flower_split.checkpoint.encoding import Encoded, Lost, encode
from flower_split.checkpoint.store import CheckpointStore, find_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Encoded",
    "Lost",
    "decode",
    "encode",
    "find_checkpoint",
    "read_checkpoint",
]
