"""A tuned model through the split says what the whole model with the adapter says."""

import pytest
import torch
from tuned import save_tuned_run, stock_ids, stock_text

from flower_split.adapters import load_adapter
from flower_split.apps.using.tuned_model import Sampling, TrunkHost, open_tuned
from flower_split.apps.using.tuned_run import tuned_run
from flower_split.config.address import Address
from flower_split.errors import AdapterError, HandshakeError, ModelError, PromptError
from flower_split.segments import load_trunk
from flower_split.server.grpc.server import TrunkServer


def ids_of(model, text="the sum"):
    return model.form.ids([{"role": "user", "content": text}])


@pytest.mark.medium
@pytest.mark.parametrize("text", ["the sum", "a list of the array"])
def test_greedily_it_says_what_stock_peft_says(finished, opened, text) -> None:
    ids, told = ids_of(opened, text), list[str]()
    answer = opened.answer(ids, Sampling(max_new_tokens=12), on_text=told.append)
    said = stock_ids(finished, ids, max_new_tokens=12)
    assert answer.text == stock_text(finished, ids, max_new_tokens=12) == "".join(told)
    assert answer.text and len(set(answer.text.split())) > 1
    assert (answer.prompt_tokens, answer.new_tokens) == (len(ids), len(said))


@pytest.mark.medium
def test_what_goes_on_begins_with_its_blank(finished, opened) -> None:
    ids = opened.form.plain_ids("the sum")
    answer = opened.answer(ids, Sampling(max_new_tokens=3), goes_on=True)
    assert answer.text == " " + stock_text(finished, ids, max_new_tokens=3)


def test_draws_are_those_of_their_seed_and_leave_others_alone(opened) -> None:
    ids = ids_of(opened)
    drawn = Sampling(max_new_tokens=12, temperature=1.5, seed=3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = opened.answer(ids, drawn), opened.answer(ids, drawn)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.text == second.text
    other = opened.answer(ids, Sampling(max_new_tokens=12, temperature=1.5, seed=4))
    assert other.text != first.text


def test_an_answer_ends_at_a_stop_text_or_when_it_is_told_to(opened) -> None:
    ids = ids_of(opened)
    whole = opened.answer(ids, Sampling(max_new_tokens=12)).text
    word = whole.split()[2]
    stopped = opened.answer(ids, Sampling(max_new_tokens=12, stop=(word,)))
    assert stopped.text == whole[: whole.index(word)] and stopped.finish == "stop"
    told = list[str]()
    early = opened.answer(
        ids, Sampling(max_new_tokens=12), on_text=told.append, is_stopped=lambda: len(told) >= 2
    )
    assert early.finish == "interrupted" and early.text == "".join(told)
    assert whole.startswith(early.text) and len(told) == 2
    assert opened.answer(ids, Sampling(max_new_tokens=12)).text == whole


def test_the_context_bounds_prompt_and_answer(opened) -> None:
    ids = [5] * 250
    answer = opened.answer(ids, Sampling(max_new_tokens=100))
    assert answer.new_tokens <= 6
    assert answer.is_full == (answer.new_tokens == 6)
    with pytest.raises(PromptError, match="256 tokens and the model's context 256"):
        opened.answer([5] * 256)
    with pytest.raises(PromptError, match="do not belong together"):
        opened.answer([99])


@pytest.mark.medium
def test_the_trunk_may_be_in_another_process(finished) -> None:
    model = str(finished.parent / "model")
    trunk = load_adapter(load_trunk(model, bottom_layers=1, top_layers=1), finished / "adapter")
    with TrunkServer(trunk) as server, tuned_run(finished) as run:
        at = TrunkHost(address=Address.parse(server.address))
        with open_tuned(run, trunk=at) as opened:
            assert str(at.address) in opened.where
            ids = ids_of(opened)
            said = opened.answer(ids, Sampling(max_new_tokens=6)).text
    assert said == stock_text(finished, ids, max_new_tokens=6)


@pytest.mark.medium
def test_a_trunk_without_the_adapter_is_refused(finished) -> None:
    trunk = load_trunk(str(finished.parent / "model"), bottom_layers=1, top_layers=1)
    with TrunkServer(trunk) as server, tuned_run(finished) as run:
        at = TrunkHost(address=Address.parse(server.address))
        with pytest.raises(HandshakeError, match="adapter"), open_tuned(run, trunk=at):
            pass


@pytest.mark.parametrize("layers", [3, 6])
def test_an_adapter_of_a_model_with_other_layers_is_refused(finished, tmp_path, layers) -> None:
    """One with more layers would be left without adapters there, and say something else."""
    other = save_tuned_run(tmp_path, layers=layers)
    given = {"model.name": str(other.parent / "model")}
    with (
        tuned_run(finished, overrides=given) as run,
        pytest.raises(AdapterError, match="--model"),
        open_tuned(run),
    ):
        pass


def test_a_model_that_is_not_there_is_asked_for(finished) -> None:
    with (
        tuned_run(finished, overrides={"model.name": "/nowhere"}) as run,
        pytest.raises(ModelError, match=r"'/nowhere'.*--model"),
        open_tuned(run),
    ):
        pass
