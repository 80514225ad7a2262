"""Personal parts put in their place: a global adapter with the personal tensors of one silo."""

from collections.abc import Mapping

from torch import Tensor

from flower_split.errors import AdapterError
from flower_split.lowrank.names import Pair, pair_up


def personalised(
    whole: Mapping[str, Tensor], personal: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """The silo's own adapter, of scale 1.

    Args:
        whole: The global adapter, of scale 1 and without folded tensors; see `combined`.
        personal: The silo's own tensors: both factors of a module, or one.
        scale: Of the product of the silo's factors.

    Raises:
        AdapterError: a personal tensor has no partner of its rank in `whole`.
    """
    own = dict(whole)
    for pair in pair_up({**whole, **personal}):
        if pair.a not in personal and pair.b not in personal:
            continue
        a = personal.get(pair.a, whole.get(pair.a))
        b = personal[pair.b] * scale if pair.b in personal else whole.get(pair.b)
        if a is None or b is None or a.shape[0] != b.shape[1] or not _fits(pair, a, b, whole):
            raise AdapterError(
                f"the silo's personal part of {pair.module} does not fit this adapter: it is "
                "of another run, or of another rank"
            )
        own |= {pair.a: a, pair.b: b}
    return own


def _fits(pair: Pair, a: Tensor, b: Tensor, whole: Mapping[str, Tensor]) -> bool:
    """Whether the update has the shape of the global one, where there is one."""
    if pair.a not in whole or pair.b not in whole:
        return True
    return a.shape[1] == whole[pair.a].shape[1] and b.shape[0] == whole[pair.b].shape[0]
