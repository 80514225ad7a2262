"""Rows of several silos in one batch come out as if each silo had been alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from several_silos import TOGETHER, furthest, make_trunk, open_silo, passes
from tiny_models import CASES, Case

from flower_split.config.sections import LoraSettings
from flower_split.segments.families import FAMILIES
from flower_split.transport.messages import ForwardRequest

# Of a tensor's largest element: other sums in float32, of other shapes.
TOLERANCE = 2e-5
MIXING = [case for case in CASES if FAMILIES[case.model_type].mixes_rows]


def requests_of(
    shapes: list[tuple[int, int]], how: str, width: int, seed: int
) -> tuple[list[ForwardRequest], list[torch.Tensor]]:
    """One forward request and one gradient of each shape; masks padded on both sides."""
    generator = torch.Generator().manual_seed(seed)
    forwards, grads = [], []
    for rows, tokens in shapes:
        hidden = torch.randn(rows, tokens, width, generator=generator)
        grad = torch.randn(rows, tokens, width, generator=generator)
        mask = positions = None
        if how != "bare":
            mask = torch.ones(rows, tokens, dtype=torch.bool)
            for row in range(rows):
                padding = (row + 1) % tokens
                if how == "left":
                    mask[row, :padding] = False
                else:
                    mask[row, tokens - padding :] = False
            grad = grad * mask[..., None]
        if how == "left":
            assert mask is not None
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        if how == "bare" and seed % 2:
            positions = torch.arange(tokens)[None]
        forwards.append(
            ForwardRequest(
                step=0,
                microbatch=0,
                hidden=hidden,
                attention_mask=mask,
                position_ids=positions,
                keep_graph=True,
                dropout=bool(seed % 2),
            )
        )
        grads.append(grad)
    return forwards, grads


def together_and_alone(
    case: Case, attention: str, shapes: list[tuple[int, int]], how: str, seed: int, rank: int
) -> tuple[float, list[int]]:
    """How far the two are apart, and how many rows of others each silo had beside its own."""
    model = case.model(attention)
    experts = not FAMILIES[case.model_type].mixes_rows
    lora = LoraSettings(
        r=rank,
        alpha=float(rank + 1),
        dropout=0.0,
        **({"target_modules": ("q_proj", "v_proj")} if experts else {}),
    )
    forwards, grads = requests_of(shapes, how, model.config.hidden_size, seed)
    made = []
    for batching in (TOGETHER, None):
        engine = make_trunk(case.model(attention), batching, lora=lora)
        silos = [open_silo(engine, 10 + number) for number in range(len(shapes))]
        made.append(passes(silos, forwards, grads))
        for one, request in zip(made[-1], forwards, strict=True):
            if request.attention_mask is not None:
                one.h2 = one.h2 * request.attention_mask[..., None]
        if batching is not None:
            beside = [silo.summary.queue.rows_beside for silo in silos]
        for silo in silos:
            silo.close()
        assert engine.queue.budget.kept == 0
    return max(map(furthest, *made)), beside


@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("case", MIXING, ids=lambda case: case.name)
def test_every_family_computes_mixed_rows_as_if_alone(case: Case) -> None:
    apart, beside = together_and_alone(case, "eager", [(2, 7), (1, 9), (3, 8)], "left", 4, 3)
    assert apart < TOLERANCE
    assert beside == [2 * 4, 2 * 5, 2 * 3]


@pytest.mark.parametrize(
    "name", sorted({c.model_type for c in CASES} - {c.model_type for c in MIXING})
)
def test_families_whose_rows_are_not_computed_each_for_itself_are_not_mixed(name: str) -> None:
    case = next(case for case in CASES if case.model_type == name)
    apart, beside = together_and_alone(case, "eager", [(2, 7), (1, 9)], "left", 4, 3)
    assert apart == 0.0
    assert beside == [0, 0]


@pytest.mark.medium
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["gpt2", "llama", "gemma3_text", "bloom", "falcon-alibi", "opt"]),
    attention=st.sampled_from(["sdpa", "eager"]),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(2, 12)), min_size=1, max_size=5),
    how=st.sampled_from(["bare", "right", "left"]),
    seed=st.integers(0, 1000),
    rank=st.integers(1, 8),
)
def test_whatever_the_shapes_mixed_rows_are_computed_as_if_alone(
    name: str, attention: str, shapes: list[tuple[int, int]], how: str, seed: int, rank: int
) -> None:
    case = next(case for case in CASES if case.name == name)
    attention = "eager" if name == "bloom" else attention  # it has no other
    apart, _ = together_and_alone(case, attention, shapes, how, seed, rank)
    assert apart < TOLERANCE


@pytest.mark.medium
def test_a_batch_of_one_is_computed_to_the_bit_as_without_batching() -> None:
    case = next(case for case in CASES if case.name == "llama")
    for seed in range(2):
        apart, _ = together_and_alone(case, "sdpa", [(2, 7)], "right", seed, 3)
        assert apart == 0.0
