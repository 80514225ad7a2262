"""A silo's data: read, partitioned, held out, tokenised once and batched."""

from flower_split.data.batching import batches, eval_batches, train_batches
from flower_split.data.examples import Examples
from flower_split.data.held_out import hold_out
from flower_split.data.partitioning import partition
from flower_split.data.poisson import PoissonBatches
from flower_split.data.sequences import TokenizedDataset
from flower_split.data.shapes.preferences import Preference, preferences
from flower_split.data.silo import SiloData, load_silo, silo_examples
from flower_split.data.sources import load_examples
from flower_split.data.special_tokens import encode_prompt
from flower_split.data.summary import DataSummary
from flower_split.data.tokenizing import PROMPT_SEPARATOR, tokenize

__all__ = [
    "PROMPT_SEPARATOR",
    "DataSummary",
    "Examples",
    "PoissonBatches",
    "Preference",
    "SiloData",
    "TokenizedDataset",
    "batches",
    "encode_prompt",
    "eval_batches",
    "hold_out",
    "load_examples",
    "load_silo",
    "partition",
    "preferences",
    "silo_examples",
    "tokenize",
    "train_batches",
]
