"""What a trunk cannot have computed ends the session instead of being trained on."""

import pytest
import torch
from pairs import make_batch, make_pair, take_steps
from torch import Tensor

from flower_split import SplitAdamW
from flower_split.errors import WireError
from flower_split.remote.magnitude_watch import ASKED_BY, MagnitudeWatch


def answered(watch: MagnitudeWatch, size: float, *, hop: str = "h2", asked: float = 1.0) -> None:
    shape = (2, 3, 4)
    watch.ask(ASKED_BY[hop], 0, torch.full(shape, asked))
    watch.answer(hop, 0, torch.full(shape, size))


@pytest.mark.parametrize("size", [1e30, 1e9, 0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("hop", ["h2", "g1", "prefix_grad"])
def test_the_first_answer_has_wide_bounds(hop: str, size: float) -> None:
    with pytest.raises(WireError, match=f"{hop} of microbatch 0 is .* times as large"):
        answered(MagnitudeWatch(), size, hop=hop)
    answered(MagnitudeWatch(), 1e5, hop=hop)


def test_a_question_may_have_two_answers() -> None:
    watch = MagnitudeWatch()
    watch.ask("g2", 0, torch.ones(2, 3, 4))
    watch.answer("g1", 0, torch.ones(2, 3, 4))
    with pytest.raises(WireError, match="prefix_grad of microbatch 0"):
        watch.answer("prefix_grad", 0, torch.zeros(4, 2, 8))


def test_later_answers_are_compared_with_those_before() -> None:
    watch = MagnitudeWatch()
    for size in (1.0, 3e3, 1e-3, 1e7):
        answered(watch, size)
    with pytest.raises(WireError, match=r"and 0\.001 to 1e\+07 times before"):
        answered(watch, 1e-8)


def test_a_question_of_zeros_is_answered_by_anything() -> None:
    answered(MagnitudeWatch(), 1.0, hop="g1", asked=0.0)
    answered(MagnitudeWatch(), 0.0, hop="g1", asked=0.0)


@pytest.mark.parametrize("hop", ["h2", "g1"])
@pytest.mark.parametrize("factor", [0.0, 1e25])
def test_a_session_with_a_trunk_that_turns_hostile_ends(
    monkeypatch: pytest.MonkeyPatch, hop: str, factor: float
) -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    take_steps(pair.client, optimizer)
    before = {n: p.detach().clone() for n, p in pair.client.named_parameters()}
    honest = type(pair.transport).forward if hop == "h2" else type(pair.transport).backward

    def hostile(self: object, request: object) -> object:
        answer = honest(self, request)  # type: ignore[arg-type]
        result = answer.result()
        tensor = result if isinstance(result, Tensor) else result.grad
        tensor.mul_(factor)
        return answer

    monkeypatch.setattr(type(pair.transport), "forward" if hop == "h2" else "backward", hostile)
    with pytest.raises(WireError, match=f"{hop} of microbatch"):
        pair.client(**make_batch()).loss.backward()
    after = dict(pair.client.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
