"""A loop of one's own over a session's optimizer steps, several microbatches in flight."""

import itertools

import pytest
import torch
from tiny_checkpoint import tiny_run_config

from flower_split.adapters import read_state
from flower_split.client import SplitSession
from flower_split.errors import AdapterError
from flower_split.transport.grpc.transport import GrpcTransport


@pytest.fixture
def run_config(tiny):
    settings = {"train.batch-size": 2, "train.accumulation": 3}
    return {**tiny_run_config(tiny), **settings}


@pytest.fixture(params=[(1, 0.2), (3, 0.0)])
def in_flight(request, run_config):
    """Microbatches in flight, with dropout where it is one: silo and trunk are in one process here,
    and several at once would draw from its generator in any order."""
    number, run_config["lora.dropout"] = request.param
    return number


def adapter_of(session):
    return {name: tensor.clone() for name, tensor in read_state(session.model).items()}


class NotingTransport(GrpcTransport):
    """Notes in which order passes are asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def forward(self, request):
        self.asked.append("forward")
        return super().forward(request)

    def backward(self, request):
        self.asked.append("backward")
        return super().backward(request)


@pytest.mark.medium
def test_steps_are_made_of_the_same_batches(invite, context):
    message, _ = invite()
    with SplitSession(message, context()) as session:
        batches, steps = list(session.train_batches()), list(session.train_steps())
    assert [len(step) for step in steps] == [3, 2]
    for batch, other in zip(batches, itertools.chain(*steps), strict=True):
        assert torch.equal(batch["input_ids"], other["input_ids"])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("in_flight", "first"), [(1, ["forward", "backward"]), (3, ["forward"] * 3)]
)
def test_microbatches_of_a_step_are_in_flight_together(invite, context, in_flight, first):
    message, _ = invite()
    changes = {"train.in-flight": in_flight}
    with SplitSession(message, context(**changes), connect=NotingTransport) as session:
        session.accumulate(next(session.train_steps()))
        assert session.transport.asked[: len(first)] == first
        assert sorted(session.transport.asked) == ["backward"] * 3 + ["forward"] * 3


@pytest.mark.medium
def test_it_trains_as_the_ready_made_loop_does(in_flight, invite, context):
    """In a later round."""
    changes = {"train.in-flight": in_flight, "train.local-epochs": 2}
    trained = []
    for own in (False, True):
        message, _ = invite(server_round=2)
        with SplitSession(message, context(**changes)) as session:
            before = adapter_of(session)
            if own:
                for microbatches in session.train_steps():
                    session.accumulate(microbatches)
                    session.optimizer.step()
                    session.optimizer.zero_grad()
            else:
                session.train()
            trained.append(adapter_of(session))
    ready_made, ours = trained
    assert all(torch.equal(ours[name], ready_made[name]) for name in ready_made)
    assert not all(torch.equal(ours[name], before[name]) for name in before)


@pytest.mark.medium
def test_what_no_reply_carries_is_not_trained(invite, context):
    message, _ = invite()
    with SplitSession(message, context()) as session:
        session.model.get_output_embeddings().weight.requires_grad_(True)
        session.accumulate(next(session.train_steps()))
        session.optimizer.step()
        with pytest.raises(AdapterError, match=r"lm_head.*a reply carries the adapter alone"):
            session.reply()
