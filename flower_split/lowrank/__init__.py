"""Low-rank algebra of LoRA updates: factors, their scale, sums and best approximations.

Tensors are torch's, results are in the dtype of what goes in, and a dense update is formed only
where its factors would be larger than it.
"""

from flower_split.lowrank.combining import (
    combined,
    combined_ranks,
    plain_names,
    split_folded,
)
from flower_split.lowrank.factors import Factors
from flower_split.lowrank.instructions import (
    CONTROL,
    LORA_RECORD,
    Instructions,
    scaling_fields,
    scaling_from_fields,
)
from flower_split.lowrank.leading import leading
from flower_split.lowrank.names import (
    FOLDED,
    Pair,
    folded_name,
    is_embedding,
    is_folded,
    pair_up,
    part_of,
    plain_name,
)
from flower_split.lowrank.personal import personalised
from flower_split.lowrank.resizing import adapter_name, at_rank, fit_part, fresh_factors
from flower_split.lowrank.scaling import MOST_ALPHA, Allowance, Scaling
from flower_split.lowrank.stacking import recompressed, stacked

__all__ = [
    "CONTROL",
    "FOLDED",
    "LORA_RECORD",
    "MOST_ALPHA",
    "Allowance",
    "Factors",
    "Instructions",
    "Pair",
    "Scaling",
    "adapter_name",
    "at_rank",
    "combined",
    "combined_ranks",
    "fit_part",
    "folded_name",
    "fresh_factors",
    "is_embedding",
    "is_folded",
    "leading",
    "pair_up",
    "part_of",
    "personalised",
    "plain_name",
    "plain_names",
    "recompressed",
    "scaling_fields",
    "scaling_from_fields",
    "split_folded",
    "stacked",
]
