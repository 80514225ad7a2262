"""What a model's layers were, for whoever has to know whether they still are."""

from flower_split.segments.watching.as_cut import LayersAsCut
from flower_split.segments.watching.samples import TensorSample

__all__ = ["LayersAsCut", "TensorSample"]
