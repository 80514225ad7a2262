"""How a session calls its client model: stage by stage where its passes can overlap."""

import logging

import torch
from torch import nn

from flower_split.errors import SharedTensorError
from flower_split.remote import SplitStages
from flower_split.training.stages import Stages, WholeModel

logger = logging.getLogger(__name__)


def stages_of(
    client_model: nn.Module, *, autocast: torch.dtype | None = None, measures: bool = False
) -> Stages:
    """The stages of a client model with a trunk attached; in one piece where two share a tensor.

    Rows of tied embeddings that are trained are such a tensor. One microbatch after the other
    computes the same; nothing overlaps then.

    Args:
        client_model: With a trunk attached.
        autocast: Dtype of the silo's matrix products; None for that of its weights.
        measures: As for `SplitStages`.
    """
    try:
        return SplitStages(client_model, autocast=autocast, measures=measures)
    except SharedTensorError as error:
        logger.info("one microbatch at a time: %s", error)
        return WholeModel(client_model, autocast=autocast)
