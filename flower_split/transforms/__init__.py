"""What leaves and enters at the cuts: an ordered list of transforms, the same at both ends."""

from flower_split.transforms.chain import TransformChain
from flower_split.transforms.transform import Transform, TransformContext

__all__ = ["Transform", "TransformChain", "TransformContext"]
