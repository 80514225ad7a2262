"""A small twin of a configuration: the same architecture, a few narrow layers.

Settings are recognised by their names, which follow few customs in transformers. What decides how
a model computes (kinds of layers, scales, soft-capping, activation, ties) stays; what decides only
how large it is becomes small. What could be neutral and hide a difference (windows longer than a
text, multipliers of 1) does not stay so.
"""

import copy
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig

from flower_split.config.tasks import CAUSAL_LM, CLASSIFYING
from flower_split.segments.stock_classes import task_of

WIDTH, HEADS, HEAD_WIDTH = 32, 4, 8
VOCABULARY = 128
POSITIONS = 64
WINDOW = 6
"""Shorter than the texts of the proof."""
EXPERTS = 4
LABELS = 3
LEAST_LAYERS, MOST_LAYERS = 4, 24

_NO_SETTINGS = ("_name_or_path", "architectures", "dtype", "model_type", "quantization_config")


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a small twin; `config` is left as it is.

    The twin has every kind of layer that the model has, in the model's order, most of them twice.
    Its dropout rates are 0, because two parties cannot draw the same numbers.

    Raises:
        Exception: of the stock configuration, which checks itself; or there are too many kinds.
    """
    settings = copy.deepcopy(config.to_dict())
    for key in _NO_SETTINGS:
        settings.pop(key, None)
    settings.pop("transformers_version", None)
    names = config.attribute_map
    layers = int(config.num_hidden_layers)
    kept = _kept_layers(settings, layers)
    small = _Shrinking(settings, names, layers, kept).of_all(settings)
    small[names.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    _fit_heads(small)
    twin = type(config)(**small)
    if (task := task_of(config)) != CAUSAL_LM:
        twin.architectures = config.architectures
        twin.id2label = {number: f"LABEL_{number}" for number in range(LABELS)}
        twin.label2id = {label: number for number, label in twin.id2label.items()}
        if task in CLASSIFYING:
            twin.problem_type = "single_label_classification"
            twin.classifier_dropout = 0.0  # 0.1 of decoders that do not say
        if twin.pad_token_id is None:
            twin.pad_token_id = 3
    return twin


def _kept_layers(settings: Mapping[str, Any], layers: int) -> list[int]:
    """Indices of the layers that the twin takes over."""
    lists = [v for k, v in settings.items() if _is_by_layer(k, v, layers)]
    members = [set(v) for k, v in settings.items() if _is_layer_set(k, v, layers)]
    kinds = [
        (*(repr(values[i]) for values in lists), *(i in member for member in members))
        for i in range(layers)
    ]
    kept = {kinds.index(kind) for kind in kinds}
    if len(kept) > MOST_LAYERS:
        raise ValueError(f"its layers are of {len(kept)} kinds, at most {MOST_LAYERS} are tried")
    wanted = max(LEAST_LAYERS, min(2 * len(kept), MOST_LAYERS))
    # The last of every kind too, so that more than one party has it.
    for kind in [kinds[i] for i in sorted(kept)]:
        if len(kept) < wanted:
            kept.add(layers - 1 - kinds[::-1].index(kind))
    for i in range(layers):
        if len(kept) < wanted:
            kept.add(i)
    more = [i % layers for i in range(wanted - len(kept))]  # of a model with few layers
    return sorted([*kept, *more])


def _is_by_layer(key: str, value: Any, layers: int) -> bool:
    """Whether a setting has one entry a layer."""
    return (
        isinstance(value, list | tuple)
        and len(value) == layers > 1
        and not _is_layer_set(key, value, layers)
    )


def _is_layer_set(key: str, value: Any, layers: int) -> bool:
    """Whether a setting lists indices of layers."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and re.search(r"layer|idx|indices", key) is not None
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < layers for v in value)
        and len(set(value)) == len(value)
    )


class _Shrinking:
    """Small values of the settings of one configuration."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        names: Mapping[str, str],
        layers: int,
        kept: list[int],
    ) -> None:
        self._layers = layers
        self._kept = kept
        self._width = int(settings.get(names.get("hidden_size", "hidden_size")) or WIDTH)
        heads = settings.get(names.get("num_attention_heads", "num_attention_heads"))
        self._heads = int(heads or HEADS)

    def of_all(self, settings: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: self._of_one(str(key), value) for key, value in settings.items()}

    def _of_one(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            if key.startswith("rope"):
                return _of_rope(value)
            if "layer" in key and value and all(str(index).isdigit() for index in value):
                known = {int(index): (type(index), of) for index, of in value.items()}
                return {
                    known[old][0](new): self._of_one("", known[old][1])
                    for new, old in enumerate(self._kept)
                    if old in known
                }
            return self.of_all(value)
        if _is_layer_set(key, value, self._layers):
            return [new for new, old in enumerate(self._kept) if old in value]
        if _is_by_layer(key, value, self._layers):
            return [self._of_one(key.removesuffix("s"), value[i]) for i in self._kept]
        if isinstance(value, float):
            return _of_float(key, value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            rule = next((rule for pattern, rule in _RULES if re.search(pattern, key)), None)
            return value if rule is None else rule(self, value)
        return value

    def width(self, value: int) -> int:
        """In proportion to that of the hidden states."""
        if value % self._width == 0:
            return value // self._width * WIDTH
        return max(8, math.ceil(value * WIDTH / self._width / 8) * 8)

    def heads(self, value: int) -> int:
        """As many as the queries have, or fewer."""
        return HEADS if value >= self._heads else min(value, HEADS // 2)

    def part_of_layers(self, value: int) -> int:
        """A number of layers: all, or up to half of them."""
        return len(self._kept) if value >= self._layers else min(value, len(self._kept) // 2)


def _of_float(key: str, value: float) -> float:
    if re.search(r"drop|jitter", key):
        return 0.0
    if value == 1.0 and re.search(r"multiplier|scale|scaling", key):
        return 0.75
    return value


def _of_rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions: factors of a head's half width; trained on fewer tokens than a text has."""
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            small[key] = _of_rope(value)
        elif key in ("short_factor", "long_factor") and isinstance(value, list):
            small[key] = value[: HEAD_WIDTH // 2]
        elif key == "mrope_section" and isinstance(value, list):
            small[key] = [HEAD_WIDTH // 2 - len(value) + 1, *[1] * (len(value) - 1)]
        elif key == "original_max_position_embeddings":
            small[key] = 8
        else:
            small[key] = value
    return small


_INNER_HEADS = (
    ("mamba_expand", "mamba_n_heads", "mamba_d_head"),
    ("mamba_expand", "n_mamba_heads", "mamba_headdim"),
    ("expand", "num_heads", "head_dim"),
)


def _fit_heads(small: dict[str, Any]) -> None:
    """Heads of state-space layers make up the width that these expand to."""
    for expand, heads, width in _INNER_HEADS:
        if expand in small and heads in small and width in small:
            inner = small.get("mamba_d_ssm") or int(small[expand] * WIDTH)
            small[width] = inner // small[heads]


def _at_most(bound: int) -> Callable[[_Shrinking, int], int]:
    return lambda shrinking, value: min(value, bound)


def _token(shrinking: _Shrinking, value: int) -> int:
    return value if value < VOCABULARY // 2 else value % 7 + 3


# The first whose pattern is found in a setting's name.
_RULES: tuple[tuple[str, Callable[[_Shrinking, int], int]], ...] = (
    (r"vocab", _at_most(VOCABULARY)),
    (r"token_id|token_index|_index$", _token),
    (r"position|n_ctx|max_seq_len|context_length|max_length|n_floor|floor_scale", _at_most(64)),
    (r"window|attention_chunk|local_attention", _at_most(WINDOW)),
    (r"^num_nextn|mtp", _at_most(0)),
    (r"period|interval|every|pattern|first_k_dense|dense_layers|sparse_step", _at_most(2)),
    (r"moe_layer_start", _at_most(2)),
    (r"moe_layer_end", _at_most(LEAST_LAYERS)),
    (r"offset", _at_most(1)),
    (r"experts_per|topk$|moe_k$|top_k$", _at_most(2)),
    (r"shared_experts$", _at_most(2)),
    (r"experts$|expert_num", _at_most(EXPERTS)),
    (r"topk_group", _at_most(1)),
    (r"n_group$|expert_group", _at_most(2)),
    (r"heads|n_head$|groups$", _Shrinking.heads),
    (r"qk_head_dim", _at_most(2 * HEAD_WIDTH)),
    (r"head_dim|kv_channels|dim_head|d_head|headdim|rotary_dim", _at_most(HEAD_WIDTH)),
    (r"head_size|pre_attn_scalar", _at_most(HEAD_WIDTH)),
    (r"rank|chunk|state", _at_most(8)),
    (r"layers$|num_blocks|n_layer$|layers_per_stack", _Shrinking.part_of_layers),
    (r"kernel|conv|time\d", _at_most(8)),
    (r"hidden|size|dim|width|ffn|inner|embd|d_model|dff|extent|d_rel|ssm", _Shrinking.width),
)
