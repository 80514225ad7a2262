"""Local training and evaluation of a causal language model, cut or whole."""

from flower_split.training.accumulation import Accumulator
from flower_split.training.batch import Batch, Batches, SampledBatches, StepLoss
from flower_split.training.evaluation import evaluate
from flower_split.training.loop import (
    StepReport,
    step_batches,
    steps_in_round,
    steps_of,
    train_round,
)
from flower_split.training.metrics import EvalMetrics, TrainMetrics
from flower_split.training.progress import show_progress
from flower_split.training.stages import Passage, Stages, WholeModel

__all__ = [
    "Accumulator",
    "Batch",
    "Batches",
    "EvalMetrics",
    "Passage",
    "SampledBatches",
    "Stages",
    "StepLoss",
    "StepReport",
    "TrainMetrics",
    "WholeModel",
    "evaluate",
    "show_progress",
    "step_batches",
    "steps_in_round",
    "steps_of",
    "train_round",
]
