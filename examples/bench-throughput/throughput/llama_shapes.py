"""Llamas of known sizes with random weights, cut in three, and the work of a trunk of theirs."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

NARROW = torch.bfloat16
"""Of the weights, and of matrix products."""


@dataclass(frozen=True, kw_only=True)
class TrunkShape:
    """A Llama cut in three, and the work of an optimizer step."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    bottom: int = 1
    top: int = 1
    rows: int = 1
    tokens: int = 256
    microbatches: int = 4
    steps: int = 4
    """Measured, after one that is not."""
    silos: tuple[int, ...] = (1, 4, 16)

    @property
    def step_tokens(self) -> int:
        """Tokens of one silo's optimizer step."""
        return self.microbatches * self.rows * self.tokens


SHAPES: dict[str, TrunkShape] = {
    "llama-3-8b": TrunkShape(
        layers=32,
        hidden=4096,
        intermediate=14336,
        heads=32,
        key_value_heads=8,
        vocabulary=128256,
    ),
    "llama-3.2-1b": TrunkShape(
        layers=16,
        hidden=2048,
        intermediate=8192,
        heads=32,
        key_value_heads=8,
        vocabulary=128256,
    ),
    "toy": TrunkShape(
        layers=4,
        hidden=32,
        intermediate=64,
        heads=4,
        key_value_heads=2,
        vocabulary=31,
        tokens=8,
        microbatches=2,
        steps=1,
        silos=(1, 2),
    ),
}


def random_llama(shape: TrunkShape, device: torch.device) -> LlamaForCausalLM:
    """A model of that shape, made on the device."""
    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=max(shape.tokens, 64),
        bos_token_id=0,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(NARROW)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
