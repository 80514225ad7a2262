"""The check that a family is exact when it is cut: loss and gradients equal to the bit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import ModelError, UnsupportedFamilyError
from flower_split.optimization.loss import IGNORED
from flower_split.segments.ends import Bottom, Top
from flower_split.segments.families import Family, known_family
from flower_split.segments.joining import join
from flower_split.segments.refusals import refuse_model
from flower_split.segments.splitting import split_model, split_segments
from flower_split.segments.stock_classes import task_of_model
from flower_split.segments.trunk import Trunk

_ROWS, _TOKENS = 3, 14

Results = dict[str, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Inputs of one forward pass."""

    title: str
    inputs: dict[str, Tensor]
    use_cache: bool = True
    """Whether the stock model makes a cache, as it does by default in training too."""


Call = Callable[[_Batch], tuple[Tensor, Tensor]]


def check_exact(
    model: PreTrainedModel,
    bottom_layers: int,
    top_layers: int,
    *,
    family: Family | None = None,
    seed: int = 0,
) -> None:
    """Compare loss, logits and all gradients of `model`, uncut and cut, on random token ids.

    Batches without a mask, with right and left padding, with explicit position ids and with
    packed documents are tried, with dropout off, through a client model with its trunk and through
    bottom, trunk and top. `model` is left as it is, and no gradient is stored in it. Choose a small
    model whose configuration is not neutral: multipliers other than 1, sliding windows shorter
    than 14 tokens, both `eager` and `sdpa` attention.

    Args:
        model: A stock causal language model in memory.
        bottom_layers: Layers of the bottom.
        top_layers: Layers of the top.
        family: What is to be registered when the check passes; by default the registered entry,
            or a family of the model's type whose layers return plain hidden states.
        seed: Seed of the token ids.

    Raises:
        UnsupportedFamilyError: something differs; the first tensor that does is named.
        CutError: the cuts do not fit the model.
        ModelError: the model is no causal language model, has nothing to differentiate, or an
            option of it needs what the trunk does not send.
    """
    check_exact_cuts(model, [(bottom_layers, top_layers)], family=family, seed=seed)


def check_exact_cuts(
    model: PreTrainedModel,
    cuts: Sequence[tuple[int, int]],
    *,
    family: Family | None = None,
    seed: int = 0,
) -> None:
    """`check_exact` at several cuts, each (bottom_layers, top_layers)."""
    refuse_model(model)
    if (task := task_of_model(model)) != CAUSAL_LM:
        raise ModelError(
            f"check_exact compares causal language models, and this {type(model).__name__} is for "
            f"{task}: try its family with flower-split check MODEL --task {task}"
        )
    kind = model.config.model_type
    family = family or known_family(kind) or Family(model_type=kind)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "no parameter of the model requires a gradient, so there is none to compare; call "
            "model.requires_grad_(True)"
        )
    with _without_dropout(model):
        batches = list(_batches(model, seed))
        expected = [_results(model, partial(_called, model), batch) for batch in batches]
        for bottom_layers, top_layers in cuts:
            client, trunk = split_model(model, bottom_layers, top_layers, family=family)
            join(client, trunk)
            parts = split_segments(model, bottom_layers, top_layers, family=family)
            for batch, wanted in zip(batches, expected, strict=True):
                where = f"{kind} at cuts {bottom_layers}/{top_layers}, {batch.title}"
                _compare(where, wanted, _results(model, partial(_called, client), batch))
                if not batch.use_cache:
                    where += ", bottom, trunk and top"
                    _compare(where, wanted, _results(model, partial(_chained, parts), batch))


def _batches(model: PreTrainedModel, seed: int) -> Iterator[_Batch]:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(model.config.vocab_size)
    ids = torch.randint(0, vocabulary, (_ROWS, _TOKENS), generator=generator).to(model.device)
    lengths = torch.tensor([_TOKENS, _TOKENS - 3, _TOKENS - 6], device=model.device)
    columns = torch.arange(_TOKENS, device=model.device)
    right = columns < lengths[:, None]
    left = right.flip(1)
    plain = {"input_ids": ids, "labels": ids}
    yield _Batch(title="without mask", inputs=plain)
    for side, mask in (("right", right), ("left", left)):
        padded = {**plain, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, IGNORED)}
        yield _Batch(title=f"{side} padding", inputs=padded)
    shifted = (left.long().cumsum(1) + 1).masked_fill(~left, 1)
    yield _Batch(
        title="left padding and explicit positions",
        inputs={**padded, "position_ids": shifted},
        use_cache=False,
    )
    packed = {**plain, "position_ids": (columns % (_TOKENS - 6))[None]}
    yield _Batch(title="packed documents", inputs=packed, use_cache=False)
    yield _Batch(title="restarting positions and a cache", inputs=packed)


def _called(model: PreTrainedModel, batch: _Batch) -> tuple[Tensor, Tensor]:
    output = model(**batch.inputs, use_cache=batch.use_cache)
    return output.loss, output.logits


def _chained(parts: tuple[Bottom, Trunk, Top], batch: _Batch) -> tuple[Tensor, Tensor]:
    bottom, trunk, top = parts
    mask, positions = batch.inputs.get("attention_mask"), batch.inputs.get("position_ids")
    h1 = bottom(batch.inputs["input_ids"], attention_mask=mask, position_ids=positions)
    h2 = trunk(h1, attention_mask=mask, position_ids=positions)
    output = top(h2, attention_mask=mask, position_ids=positions, labels=batch.inputs["labels"])
    return output.loss, output.logits


def _results(model: PreTrainedModel, call: Call, batch: _Batch) -> Results:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        try:
            loss, logits = call(batch)
        except (TypeError, IndexError, AttributeError, RuntimeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise UnsupportedFamilyError(
                f"the stock code of a cut {model.config.model_type} model fails with "
                f"{type(error).__name__}: {error}"
            ) from error
    if not bool(torch.isfinite(loss)):
        raise ModelError(f"the loss of the model is {float(loss)}; nothing can be compared")
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    titles = (f"gradient of {name}" for name in named)
    return {
        "loss": loss.detach(),
        "logits": logits.detach(),
        **dict(zip(titles, gradients, strict=True)),
    }


def _compare(where: str, expected: Results, got: Results) -> None:
    for what, tensor in expected.items():
        other = got[what]
        if tensor is None or other is None:
            if tensor is not other:
                lacking = "uncut" if tensor is None else "cut"
                raise UnsupportedFamilyError(f"{where}: the {lacking} model has no {what}")
        elif not torch.equal(tensor, other):
            gap = float((tensor - other).abs().max())
            raise UnsupportedFamilyError(
                f"{where}: the {what} differs from the uncut model's by {gap:.3g}; the family "
                "is not exact when it is cut"
            )


@contextmanager
def _without_dropout(model: PreTrainedModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
