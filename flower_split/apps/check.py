"""Whether a model can be cut: what silo and trunk find out when they load it, beforehand."""

from flower_split.config.checks import one_of
from flower_split.config.tasks import CAUSAL_LM, CLASSIFYING, TASKS, Task
from flower_split.segments import Cuts, family_of
from flower_split.segments.families import known_family
from flower_split.segments.loading.skeleton import read_config
from flower_split.segments.loading.source import resolve_source
from flower_split.segments.proving import forget_verdict
from flower_split.segments.refusals import refuse_config


def check(model: str, *, revision: str = "", again: bool = False, task: str = CAUSAL_LM) -> str:
    """What to tell of a model that is exact when it is cut. Only its `config.json` is read.

    Args:
        model: A folder, `package:folder` or a hub model, as in `model.name`.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        again: Whether to prove its family anew, whatever verdict was kept.
        task: What the model is for, as in `model.task`.

    Raises:
        ConfigError: there is no such task.
        ModelError: it cannot be cut, or there is no such model.
    """
    one_of("--task", task, TASKS)
    labels = ("0", "1") if task in CLASSIFYING else ()  # of what number is all the same
    config = read_config(resolve_source(model, revision), Task(name=task, labels=labels))
    refuse_config(config)
    if again:
        forget_verdict(config)
    family = family_of(config)
    layers = int(config.num_hidden_layers)
    Cuts(bottom_layers=0, top_layers=0, num_layers=layers)
    known = known_family(family.model_type, task)
    how = "has an entry" if known else "is proved on a small twin"
    if task != CAUSAL_LM:
        return (
            f"{model} ({family.model_type}, {layers} layers) is exact for {task} when it is cut; "
            f"its family {how}"
        )
    cache = "with a cache" if family.caches else "without a cache: generate with use_cache=False"
    return (
        f"{model} ({family.model_type}, {layers} layers) is exact when it is cut, {cache}; its "
        f"family {how}"
    )
