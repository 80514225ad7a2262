import time

import pytest
import torch
from flwr.app import Message, RecordDict

from flower_split.adapters import read_state
from flower_split.client import SplitSession
from flower_split.errors import (
    AdapterError,
    ConfigError,
    DataError,
    HandshakeError,
    SequenceError,
    SiloError,
    TokenError,
    TrunkError,
    WireError,
)
from flower_split.transport.invitation import Invitation


def train_a_step(session):
    batch = next(iter(session.train_batches()))
    loss = session.model(**batch).loss
    loss.backward()
    session.optimizer.step()
    session.optimizer.zero_grad()
    return loss.item()


def test_a_training_session_ends_in_a_reply_with_proof_and_cost(host, invite, context):
    message, invited = invite()
    with SplitSession(message, context()) as session:
        reply = session.reply({"train-loss": train_a_step(session)})
    content = reply.content
    assert list(content["arrays"]) == list(host.parts.silo_shapes)
    assert {array.dtype for array in content["arrays"].values()} == {"float32"}
    assert content["metrics"]["num-examples"] == 9
    told, ticket = dict(content["split"]), invited.invitation.ticket
    invitation = Invitation.from_fields(
        message.content["config"], run_id=ticket.run_id, node_id=ticket.node_id
    )
    assert invitation.is_proven_by(told.pop("proof"))
    assert told["silo"] == "0"
    assert told["optimizer-steps"] == 1
    assert told["bytes-sent"] > 0
    assert told["bytes-received"] == told["bytes-h2"] + told["bytes-g1"] > 0
    assert 0 < told["parameter-share"] < 1
    assert ticket.token not in repr(content)
    outcome = invited.collect()
    state, summary = outcome.tensors, outcome.summary
    assert summary.steps == 1
    assert any(tensor.abs().sum() > 0 for name, tensor in state.items() if "lora_B" in name)


@pytest.mark.medium
def test_an_evaluation_session_reports_and_trains_nothing(invite, context):
    message, _ = invite("evaluate", 0, sample=True)
    with SplitSession(message, context()) as session:
        before = read_state(session.model)
        found = session.evaluate()
        assert session.invitation.sample
        text = session.generate("the sum")
        with pytest.raises(SequenceError, match="no optimizer"):
            _ = session.optimizer
        after = read_state(session.model)
        reply = session.reply({"eval-loss": found.loss})
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not reply.content.array_records
    assert reply.content["metrics"]["num-examples"] == 3
    assert reply.content["split"]["sample"] == text
    assert text.startswith("the sum")


def test_a_session_of_its_own_round_uses_the_same_batches_again(invite, context):
    message, _ = invite()
    with SplitSession(message, context()) as session:
        one, two = (list(session.train_batches()) for _ in range(2))
    assert len(one) == 3
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first["input_ids"], second["input_ids"])


@pytest.mark.parametrize(("steps", "count"), [(5, 5), (0, 6)])
def test_as_many_batches_as_the_run_config_asks_for(invite, context, steps, count):
    message, _ = invite()
    changes = {"train.local-steps": steps, "train.local-epochs": 2}
    with SplitSession(message, context(**changes)) as session:
        assert len(list(session.train_batches())) == count


def test_the_torch_random_state_is_the_callers_again(invite, context):
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    message, _ = invite()
    with SplitSession(message, context()) as session:
        torch.rand(5)
        session.reply()
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.medium
def test_seeds_differ_by_round_and_silo(invite, context):
    seeds = set()
    for server_round, partition in ((1, 0), (2, 0), (1, 1)):
        message, _ = invite(server_round=server_round)
        with SplitSession(message, context(partition)) as session:
            seeds.add(session.seed)
    assert len(seeds) == 3


@pytest.mark.medium
def test_an_own_error_leaves_the_silo_without_its_text(invite, context, caplog):
    message, _ = invite()
    with pytest.raises(SiloError) as caught, SplitSession(message, context()):
        raise ValueError("patient 17 is ill")
    assert "patient" not in str(caught.value)
    assert "ValueError at test_session.py" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "patient 17 is ill" in caplog.text


def test_flower_splits_own_errors_pass(invite, context):
    message, _ = invite()
    with pytest.raises(DataError, match="mine"), SplitSession(message, context()):
        raise DataError("mine")


@pytest.mark.medium
def test_a_failed_session_does_not_count(host, invite, context):
    message, invited = invite()
    with pytest.raises(SiloError), SplitSession(message, context()) as session:
        train_a_step(session)
        raise KeyError("x")
    assert invited.collect() is None


@pytest.mark.medium
def test_a_token_opens_one_session_only(invite, context):
    message, _ = invite()
    with SplitSession(message, context()) as session:
        session.reply()
    with pytest.raises(TokenError), SplitSession(message, context()):
        pass


def test_a_late_silo_is_turned_away(host, invite, context):
    message, invited = invite()
    invited.discard()
    with pytest.raises(TokenError), SplitSession(message, context()):
        pass


@pytest.mark.medium
def test_a_session_ends_when_its_round_is_over(host, invite, context):
    message, invited = invite()
    with SplitSession(message, context()) as session:
        train_a_step(session)
        invited.discard()
        with pytest.raises(TrunkError):
            train_a_step(session)


@pytest.mark.medium
def test_a_silo_notices_at_once_that_the_trunk_is_gone(host, invite, context):
    message, _ = invite()
    with SplitSession(message, context()) as session:
        train_a_step(session)
        host.close()
        start = time.monotonic()
        with pytest.raises(TrunkError):
            train_a_step(session)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"split.top-layers": 2}, "top_layers"),
        ({"lora.alpha": 5.0}, "adapter"),
        ({"wire.h1": "bf16"}, "h1"),
        ({"train.weight-decay": 0.5}, "weight_decay"),
        ({"trunk.adapters": "shared"}, "trunk_adapters"),
    ],
)
def test_a_silo_with_other_settings_is_told_which(invite, context, changes, named):
    message, _ = invite()
    session = SplitSession(message, context(**changes))
    with pytest.raises((HandshakeError, AdapterError), match=named), session:
        pass


def test_a_bad_run_config_is_said_by_the_silo_too(invite, context):
    message, _ = invite()
    with pytest.raises(ConfigError, match=r"lora\.r"):
        SplitSession(message, context(**{"lora.r": 0}))


def test_a_message_that_no_split_strategy_sent_is_refused(context):
    session = SplitSession(Message(RecordDict(), 5, "train"), context())
    with pytest.raises(WireError, match="SplitStrategy"), session:
        pass
