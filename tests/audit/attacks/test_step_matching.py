"""A text is found by what its steps add to an adapter, which the aggregator computes as the silo
does."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from audit_subject import opened
from torch import nn

from flower_split.audit.attacks.simulated_steps import SimulatedSteps, simulated_steps
from flower_split.audit.attacks.step_matching import Sent, StepMatching
from flower_split.config.wire import WireConfig

VOCABULARY, WIDTH = 20, 12


class Model(nn.Module):
    """A causal model whose places look at all before them."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(0.5 * torch.randn(WIDTH, WIDTH, generator=drawn))
        self.head = nn.Parameter(torch.randn(WIDTH, VOCABULARY, generator=drawn))

    def forward(self, inputs_embeds, attention_mask, use_cache):
        mixed = torch.tanh((inputs_embeds + 0.5 * inputs_embeds.cumsum(1)) @ self.inner)
        return SimpleNamespace(logits=mixed @ self.head)


def simulated() -> SimulatedSteps:
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1))
    model = Model()
    return SimulatedSteps(
        model=model, start={"inner": model.inner.detach()}, table=table, rate=1e-3
    )


def attack(text: torch.Tensor) -> StepMatching:
    silo = simulated()
    chances = nn.functional.one_hot(text, VOCABULARY).float()
    update = silo.update(chances @ silo.table, chances[1:], 2, smooth=False)
    prior = torch.full((VOCABULARY,), 1 / VOCABULARY)
    return StepMatching(silo, Sent(update=update, tokens=len(text), steps=2), prior)


def test_a_text_is_found_by_its_update() -> None:
    text = torch.tensor([3, 11, 7, 5])
    tried = attack(text)
    assert tried.gap(text) == pytest.approx(0, abs=1e-5)
    starts = [torch.full_like(text, 2), torch.tensor([3, 11, 1, 9])]
    found, ended = tried.matched(starts, known=0)
    assert ended and torch.equal(found, text)
    # Of another text's update it has nothing.
    found, _ = attack(torch.tensor([14, 2, 19, 1])).matched(starts, known=0)
    assert int((found == text).sum()) <= 1


def test_what_is_known_is_kept() -> None:
    text = torch.tensor([3, 11, 7, 5])
    found, _ = attack(text).matched([torch.tensor([9, 2, 2, 2])], known=1)
    assert int(found[0]) == 9


@pytest.mark.medium
def test_the_aggregator_s_copy_takes_the_silo_s_own_steps(tmp_path: Path) -> None:
    subject, texts = opened(tmp_path)
    text = texts.victims.ids[0][texts.victims.mask[0]]
    with subject.cut(2, 1, trains=True) as model, model.steps(WireConfig()) as steps:
        start, sent = steps.trained(), steps.moved(text, 2)
        assert all(torch.equal(one, start[name]) for name, one in steps.trained().items())
    assert any(bool(one.any()) for one in sent.values())
    with simulated_steps(subject, start) as made:
        held = Sent(update=sent, tokens=len(text), steps=2)
        tried = StepMatching(made, held, torch.full((len(made.table),), 1 / len(made.table)))
        assert tried.gap(text) < 1e-3
        assert tried.gap(text.roll(1)) > 0.1
        rows = torch.stack([text, text.roll(1)])
        sure = nn.functional.one_hot(rows, len(made.table)).float()
        at_once = made.first_updates(sure @ made.table, sure[:, 1:])
        assert at_once is not None and at_once.keys() == start.keys()
        for place, one in enumerate(sure):
            alone = made.update(one @ made.table, one[1:], 1, smooth=False)
            # AdamW makes signs of gradients: those that are rounding are of either.
            fits = [
                nn.functional.cosine_similarity(update[place].flatten(), alone[name].flatten(), 0)
                for name, update in at_once.items()
                if alone[name].any()
            ]
            assert fits and min(map(float, fits)) > 0.999


def test_what_is_no_linear_module_is_taken_one_by_one() -> None:
    silo = simulated()
    chances = nn.functional.one_hot(torch.tensor([[3, 11, 7]]), VOCABULARY).float()
    assert silo.first_updates(chances @ silo.table, chances[:, 1:]) is None
