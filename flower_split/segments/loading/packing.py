"""Packed rows: whether a model's stock code keeps the sequences of a row apart by their positions.

A family that computes from token to token (state spaces, linear attention), or that reads no
positions, would let one sequence see another without a word. So a small twin tries it.
"""

from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from flower_split.errors import UnsupportedFamilyError
from flower_split.segments.loading.skeleton import read_config
from flower_split.segments.loading.source import resolve_source
from flower_split.segments.randomness import numbers_aside
from flower_split.segments.shrinking import VOCABULARY, shrunk
from flower_split.segments.stock_classes import auto_class, stock_class

_LENGTHS = (9, 4, 7)
_TOLERANCE = 1e-4
"""Rounding of the twin's logits, which are of the order of 1; what is seen of another sequence is
of the order of 0.1."""


@lru_cache
def check_packing(source: str | Path, revision: str = "", attention: str = "auto") -> None:
    """Raise unless a model keeps the sequences of a packed row apart.

    Args:
        source: As for `resolve_source`.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        attention: The attention kernel, as in `model.attention`.

    Raises:
        UnsupportedFamilyError: it does not, or that cannot be found out.
        WeightsError: there is no such model.
    """
    config = read_config(resolve_source(source, revision))
    kind = config.model_type
    sdpa = getattr(stock_class(config), "_supports_sdpa", False)
    kernel = "sdpa" if sdpa and attention != "eager" else "eager"
    try:
        with numbers_aside(), torch.no_grad():
            torch.manual_seed(0)
            twin = auto_class(config).from_config(
                shrunk(config), attn_implementation=kernel, dtype=torch.float32
            )
            for parameter in twin.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            gap = _gap(twin.eval())
    except Exception as error:  # whatever the stock code raises
        raise UnsupportedFamilyError(
            f"data.packing: a small {kind} model does not take packed rows "
            f"({type(error).__name__}): set data.packing to false"
        ) from error
    if not gap <= _TOLERANCE:
        raise UnsupportedFamilyError(
            f"data.packing: a {kind} model does not tell by positions where a text of a row ends, "
            f"so that one would see another (logits differ by {gap:.2g}): set data.packing to false"
        )


def _gap(twin: PreTrainedModel) -> float:
    """By how much the logits of packed sequences differ from those of each for itself."""
    most = min(VOCABULARY, int(twin.config.get_text_config(decoder=True).vocab_size))
    texts = [torch.randint(4, most, (1, length)) for length in _LENGTHS]
    apart = torch.cat([twin(input_ids=ids, use_cache=False).logits for ids in texts], dim=1)
    together = twin(
        input_ids=torch.cat(texts, dim=1),
        position_ids=torch.cat([torch.arange(length) for length in _LENGTHS])[None],
        use_cache=False,
    ).logits
    return float((apart - together).abs().max() / apart.abs().max().clamp(min=1.0))
