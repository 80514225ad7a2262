"""Shapes: the sizes of a model and of its work, and random models and tokens of that size."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A GPT-2 model cut in three, and the microbatches of an optimizer step."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    vocabulary: int = 50257
    bottom: int = 2
    top: int = 2
    rows: int = 2
    """Sequences in a microbatch."""
    tokens: int = 128
    """Tokens in a sequence."""
    microbatches: int = 8
    """Of an optimizer step."""

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.microbatches * self.rows * self.tokens


GPT2_SMALL = Shape()
TOY = Shape(layers=5, hidden=64, heads=2, vocabulary=31, tokens=8, microbatches=3)


def shape_of(*, toy: bool) -> Shape:
    """The benchmark's shape."""
    return TOY if toy else GPT2_SMALL


def random_model(shape: Shape) -> GPT2LMHeadModel:
    """The same at every call; without dropout, so that what is compared computes the same."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=shape.layers,
            n_embd=shape.hidden,
            n_head=shape.heads,
            vocab_size=shape.vocabulary,
            n_positions=max(shape.tokens, 64),
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def random_ids(shape: Shape) -> Tensor:
    """Token ids of an optimizer step, (microbatches, rows, tokens); the same at every call."""
    generator = torch.Generator().manual_seed(1)
    size = (shape.microbatches, shape.rows, shape.tokens)
    return torch.randint(shape.vocabulary, size, generator=generator)
