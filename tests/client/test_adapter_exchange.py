"""`AdapterExchange` and the silo's personal tensors, from one round to the next."""

import os
import time

import pytest
import torch
from earlier_state import write_exchange
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_model
from uncut_model import peft_model

from flower_split.adapters import read_state
from flower_split.client import AdapterExchange
from flower_split.errors import AdapterError, StateError
from flower_split.lowrank import Instructions

SILO = 5
PERSONAL = ".layers.1."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama", layers=2)


@pytest.fixture
def exchange(folder):
    """Makes the exchange of a round in which the tensors of the last layer are personal."""
    # Messages take their run and node from the process, as a Flower app's do.
    InProcessGrid(None, 0)

    def make(server_round, purpose="train", *, everything=False, **options):
        model = peft_model(folder)
        state = read_state(model)
        personal = [name for name in state if PERSONAL in name]
        sent = {n: t.numpy() for n, t in state.items() if everything or n not in personal}
        fields = Instructions().with_personal(personal, 2.0).to_fields()
        config = ConfigRecord({**fields, "server-round": server_round})
        arrays = ArrayRecord({name: torch.from_numpy(array) for name, array in sent.items()})
        message = Message(RecordDict({"arrays": arrays, "config": config}), SILO, purpose)
        context = Context(RUN_ID, SILO, {"silo": "north"}, RecordDict(), {})
        return AdapterExchange(model, message, context, **options)

    return make


def personal(exchange):
    return {n: t for n, t in read_state(exchange.model).items() if PERSONAL in n}


def trained(exchange, value):
    """End the round with all personal tensors at `value`."""
    for name, parameter in exchange.model.named_parameters():
        if PERSONAL in name and "lora_" in name:
            parameter.data.fill_(value)
    return exchange.reply({"num-examples": 1})


def values(exchange):
    return {float(entry) for tensor in personal(exchange).values() for entry in tensor.unique()}


def test_personal_tensors_resume_from_the_newest_earlier_round(exchange):
    reply = trained(exchange(1, everything=True), 1.0)
    assert not any(PERSONAL in name for name in reply.content["arrays"])
    assert values(exchange(1, "evaluate")) == {1.0}
    trained(exchange(2), 2.0)
    assert values(exchange(2)) == {1.0}
    assert values(exchange(2, "evaluate")) == values(exchange(5)) == {2.0}


def test_personal_tensors_that_are_lost_are_an_error(exchange):
    with pytest.raises(AdapterError, match=r"personal tensors of this silo .* are lost"):
        exchange(2)


def test_personal_tensors_that_diverged_are_not_replied(exchange):
    with pytest.raises(StateError, match="diverged"):
        trained(exchange(1, everything=True), float("nan"))


def test_a_message_of_another_form_is_refused(folder):
    InProcessGrid(None, 0)
    context = Context(RUN_ID, SILO, {}, RecordDict(), {})
    with pytest.raises(AdapterError, match="exactly one"):
        AdapterExchange(peft_model(folder), Message(RecordDict(), SILO, "train"), context)


def test_files_of_an_earlier_version_are_resumed_from_and_replaced_in_turn(exchange, tmp_path):
    own = tmp_path / "silo"
    own.mkdir(mode=0o700)
    tensors = {n: t.clone() for n, t in personal(exchange(1, everything=True)).items()}
    for number in (1, 2, 3):
        filled = {name: torch.full_like(t, float(number)) for name, t in tensors.items()}
        write_exchange(own, number, filled)
    assert values(exchange(3, "evaluate", folder=own)) == {3.0}
    assert values(exchange(3, folder=own)) == {2.0}
    trained(exchange(4, folder=own), 4.0)
    assert values(exchange(5, folder=own)) == {4.0}
    names = sorted(path.name for path in own.iterdir())
    assert [name[:14] for name in names[1:]] == ["round-00000002", "round-00000003"]
    assert names[0].startswith("00000004-")


def test_what_other_runs_left_is_swept_by_age(exchange, state_home):
    trained(exchange(1, everything=True), 1.0)
    (own,) = state_home.glob("flower-split/adapter/*/north-*")
    other = own.parent.with_name("other") / own.name
    other.mkdir(parents=True)
    for name in [*(path.name for path in own.iterdir()), "round-00000001.safetensors"]:
        (other / name).touch()
    for path in (*other.iterdir(), other):
        os.utime(path, (0, time.time() - 15 * 24 * 3600))
    trained(exchange(2), 2.0)
    assert not other.exists()
    assert own.exists()
