"""Generating with a twin: tokens and scores of the cut model, with and without a cache."""

from typing import Any

import torch
from torch import Tensor

from flower_split.segments import Family
from flower_split.verification.comparison import compare, failing_at
from flower_split.verification.parties import Parties

_NEW = 7

_WAYS: dict[str, dict[str, Any]] = {
    "generation with a cache": {"use_cache": True},
    "beams with a cache": {"use_cache": True, "num_beams": 3},
    "generation without a cache": {"use_cache": False},
}


def check_generation(parties: Parties, family: Family, vocabulary: int, where: str) -> None:
    """Compare texts and the scores of their tokens, of prompts padded on the left.

    Raises:
        UnsupportedFamilyError: something differs, or the cut model fails.
    """
    for model in (parties.whole, parties.client):
        # Alike on both sides: torch chooses kernels by whether a tensor could have a gradient.
        model.eval().requires_grad_(False)
    for way, arguments in _WAYS.items():
        if arguments["use_cache"] and not family.caches:
            continue
        try:
            expected = _generated(parties.whole, vocabulary, arguments)
        except Exception:  # the stock model cannot do this, cut or not
            continue
        at = f"{where}, {way}"
        with failing_at(at):
            compare(at, expected, _generated(parties.client, vocabulary, arguments))


def _generated(model: Any, vocabulary: int, arguments: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, vocabulary, (2, 5), generator=generator)
    mask = torch.ones_like(prompt)
    mask[1, :2] = 0
    with torch.no_grad():
        made = model.generate(
            input_ids=prompt,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=_NEW,
            min_new_tokens=_NEW,
            output_logits=True,
            return_dict_in_generate=True,
            **arguments,
        )
    return {"tokens": made.sequences, "logits": torch.stack(made.logits)}
