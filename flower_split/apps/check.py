"""Whether a model can be cut: what silo and trunk find out when they load it, beforehand."""

from flower_split.segments import Cuts, family_of
from flower_split.segments.families import known_family
from flower_split.segments.loading.skeleton import read_config
from flower_split.segments.loading.source import resolve_source
from flower_split.segments.proving import forget_verdict
from flower_split.segments.refusals import refuse_config


def check(model: str, *, revision: str = "", again: bool = False) -> str:
    """What to tell of a model that is exact when it is cut. Only its `config.json` is read.

    Args:
        model: A folder, `package:folder` or a hub model, as in `model.name`.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        again: Whether to prove its family anew, whatever verdict was kept.

    Raises:
        ModelError: it cannot be cut, or there is no such model.
    """
    config = read_config(resolve_source(model, revision))
    refuse_config(config)
    if again:
        forget_verdict(config)
    family = family_of(config)
    layers = int(config.num_hidden_layers)
    Cuts(bottom_layers=0, top_layers=0, num_layers=layers)
    how = "has an entry" if known_family(family.model_type) else "is proved on a small twin"
    cache = "with a cache" if family.caches else "without a cache: generate with use_cache=False"
    return (
        f"{model} ({family.model_type}, {layers} layers) is exact when it is cut, {cache}; its "
        f"family {how}"
    )
