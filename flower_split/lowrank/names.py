"""Names of LoRA tensors as PEFT writes them, and which two of them belong together.

`X.lora_A.weight` and `X.lora_B.weight` of a linear module, `X.lora_embedding_A` and
`X.lora_embedding_B` of an embedding. The adapter `folded` of the same module, which holds what was
folded into the frozen part of the model, has its name in between, as inside a PEFT model:
`X.lora_A.folded.weight`, `X.lora_embedding_A.folded`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from flower_split.errors import AdapterError

FOLDED = "folded"
"""Name of the frozen adapter that holds what a strategy folded into the model."""

_TENSOR = re.compile(
    rf"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])"
    rf"(?P<folded>\.{FOLDED})?(?P<weight>\.weight)?"
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both LoRA tensors of one module."""

    module: str
    """The module's name, as in front of `.lora_A`."""
    a: str
    b: str
    """Names of the tensors."""
    embedding: bool
    """Whether PEFT starts with a zero A and a random B; of a linear module B is zero."""
    folded: bool


def part_of(name: str) -> str:
    """`A` or `B`: the factor that the tensor `name` is.

    Raises:
        AdapterError: it is neither.
    """
    return _parsed(name)["part"]


def is_embedding(name: str) -> bool:
    """Whether `name` is that of a factor of an embedding's adapter.

    Raises:
        AdapterError: it is no factor's.
    """
    return bool(_parsed(name)["embedding"])


def is_folded(name: str) -> bool:
    """Whether `name` is that of a tensor of the adapter `folded`."""
    return f".{FOLDED}" in name[name.rfind(".lora_") :]


def folded_name(name: str) -> str:
    """Name of the tensor of the adapter `folded` that lies beside the tensor `name`."""
    found = _parsed(name)
    return found["module"] + _tail(found, folded=True)


def plain_name(name: str) -> str:
    """Name that `folded_name` made `name` of; `name` itself where it is no folded one."""
    found = _parsed(name)
    return found["module"] + _tail(found, folded=False)


def pair_up(names: Iterable[str]) -> list[Pair]:
    """The pairs of the tensors in `names`, in the order in which they begin.

    Raises:
        AdapterError: a name is no LoRA factor's, or its partner is missing.
    """
    found: dict[tuple[str, bool], dict[str, str]] = {}
    embeddings = set()
    for name in names:
        match = _parsed(name)
        key = match["module"], bool(match["folded"])
        found.setdefault(key, {})[match["part"]] = name
        if match["embedding"]:
            embeddings.add(key)
    for (module, _), parts in found.items():
        if len(parts) != 2:
            raise AdapterError(f"module {module} has a LoRA {min(parts)} without its partner")
    return [
        Pair(
            module=module,
            a=parts["A"],
            b=parts["B"],
            embedding=(module, folded) in embeddings,
            folded=folded,
        )
        for (module, folded), parts in found.items()
    ]


def _parsed(name: str) -> re.Match[str]:
    match = _TENSOR.fullmatch(name)
    if match is None or bool(match["embedding"]) == bool(match["weight"]):
        raise AdapterError(
            f"{name} is not a LoRA factor (…lora_A.weight, …lora_B.weight, …lora_embedding_A, "
            "…lora_embedding_B): other PEFT tensors cannot be aggregated as updates; use "
            "strategy.name 'fedavg', which averages any tensor"
        )
    return match


def _tail(found: re.Match[str], *, folded: bool) -> str:
    embedding, weight = found["embedding"] or "", found["weight"] or ""
    middle = f".{FOLDED}" if folded else ""
    return f".lora_{embedding}{found['part']}{middle}{weight}"
