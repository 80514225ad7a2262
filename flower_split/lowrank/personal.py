"""Personal parts put in their place: a global adapter with the tensors that one silo keeps."""

from collections.abc import Mapping

from torch import Tensor

from flower_split.errors import AdapterError
from flower_split.lowrank.names import Pair, pair_up


def personalised(
    whole: Mapping[str, Tensor], kept: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """The silo's own adapter, of scale 1.

    Args:
        whole: The global adapter, of scale 1 and without folded tensors; see `combined`.
        kept: What the silo keeps of it: both factors of a module, or one.
        scale: Of the product of the silo's factors.

    Raises:
        AdapterError: a kept tensor has no partner of its rank in `whole`.
    """
    own = dict(whole)
    for pair in pair_up({**whole, **kept}):
        if pair.a not in kept and pair.b not in kept:
            continue
        a = kept.get(pair.a, whole.get(pair.a))
        b = kept[pair.b] * scale if pair.b in kept else whole.get(pair.b)
        if a is None or b is None or a.shape[0] != b.shape[1] or not _fits(pair, a, b, whole):
            raise AdapterError(
                f"what the silo keeps of {pair.module} does not fit this adapter: it is of "
                "another run, or of another rank"
            )
        own |= {pair.a: a, pair.b: b}
    return own


def _fits(pair: Pair, a: Tensor, b: Tensor, whole: Mapping[str, Tensor]) -> bool:
    """Whether the update has the shape of the global one, where there is one."""
    if pair.a not in whole or pair.b not in whole:
        return True
    return a.shape[1] == whole[pair.a].shape[1] and b.shape[0] == whole[pair.b].shape[0]
