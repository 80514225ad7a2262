"""A silo and a trunk whose precisions differ, as a run config says."""

import pytest
import torch

from flower_split.client import SplitSession
from flower_split.config.run_config import read_run_config
from flower_split.errors import ConfigError, HandshakeError
from flower_split.server.engine import TrunkEngine
from flower_split.strategies import TrunkHost
from flower_split.transport.grpc.transport import GrpcTransport

MIXED = {"trunk.dtype": "bfloat16", "trunk.autocast": "bfloat16", "train.autocast": "bfloat16"}


@pytest.fixture
def run_config(run_config):
    return {**run_config, **MIXED}


@pytest.fixture
def trunks(monkeypatch):
    """Those that hosts serve from now on."""
    served = []

    class Noting(TrunkEngine):
        def __init__(self, trunk, **options):
            served.append(trunk)
            super().__init__(trunk, **options)

    monkeypatch.setattr("flower_split.server.hosting.hosted_run.TrunkEngine", Noting)
    return served


@pytest.mark.medium
def test_a_round_trains_evaluates_and_generates(trunks, host, invite, context):
    (trunk,) = trunks
    assert (trunk.dtype, trunk.autocast) == (torch.bfloat16, torch.bfloat16)
    message, invited = invite()
    with SplitSession(message, context()) as session:
        weights = [p for name, p in session.model.named_parameters() if "lora_" not in name]
        assert {p.dtype for p in weights} == {torch.float32}
        assert {p.device.type for p in session.model.parameters()} == {"cpu"}
        batch = next(session.train_batches())
        assert batch["input_ids"].device == session.device
        with session.autocast():
            loss = session.model(**batch).loss
        loss.backward()
        session.optimizer.step()
        trained = session.train()
        assert abs(trained.loss - float(loss.detach())) < 1
        reply = session.reply()
    assert {array.dtype for array in reply.content["arrays"].values()} == {"float32"}
    state = invited.collect().tensors
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.medium
def test_an_evaluation_goes_by_the_silos_autocast(invite, context):
    found = []
    for _ in range(2):
        message, _ = invite("evaluate")
        with SplitSession(
            message, context(**{"train.autocast": ["off", "bfloat16"][len(found)]})
        ) as one:
            found.append(one.evaluate().loss)
            assert one.generate("the sum").startswith("the sum")
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.01)


@pytest.mark.medium
@pytest.mark.parametrize(("key", "follows"), [("off", True), ("bfloat16", False)])
def test_the_trunk_follows_an_autocast_that_is_not_of_the_key(
    invite, context, run_config, key, follows
):
    """As stock trainers have one of their own; see `MIXED` for the trunk of the other tests."""
    run_config |= {"trunk.dtype": "", "trunk.autocast": "off", "train.autocast": key}
    asked = []

    class Noting(GrpcTransport):
        def forward(self, request):
            asked.append(request.autocast)
            return super().forward(request)

    message, _ = invite("evaluate")
    with SplitSession(message, context(), connect=Noting) as session, torch.no_grad():
        batch = next(session.eval_batches())
        session.model(**batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            session.model(**batch)
    assert asked == ["", "bfloat16" if follows else ""]


def test_a_silo_of_another_run_config_is_refused(invite, context):
    message, _ = invite()
    says = r"differ in dtype: the trunk has 'float32', the silo 'bfloat16'\. Start both from"
    with (
        pytest.raises(HandshakeError, match=says),
        SplitSession(message, context(**{"model.dtype": "bfloat16"})),
    ):
        pass


def test_a_device_that_is_not_there_is_refused(run_config, invite, context):
    message, _ = invite()
    silo = context()
    silo.node_config["device"] = "cuda:99"
    says = "the node config's device is 'cuda:99'"
    with pytest.raises(ConfigError, match=says), SplitSession(message, silo):
        pass
    server = read_run_config({**run_config, "trunk.device": "cuda:99"})
    with pytest.raises(ConfigError, match=r"trunk\.device is 'cuda:99'"), TrunkHost(server):
        pass
