"""A hosted trunk of a tiny model, and messages that invite to it."""

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.config.run_config import read_run_config
from flower_split.server.ticket_record import TrunkStart
from flower_split.strategies import TrunkHost
from flower_split.strategies.hosting.invited_silo import RoundTerms

NODE = 5


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with `model` and `texts.jsonl`."""
    return save_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run_config(tiny):
    return tiny_run_config(tiny)


@pytest.fixture
def host(run_config):
    with TrunkHost(read_run_config(run_config)) as running:
        yield running


@pytest.fixture
def invite(host):
    """Makes a message as `SplitStrategy` does, and the silo that it invites."""
    # Messages take their run and node from the process, as a Flower app's do.
    InProcessGrid(None, 0)

    def make(purpose="train", server_round=1, *, sample=False):
        silo, trunk = host.parts.split(host.begin(None))
        terms = RoundTerms(purpose=purpose, server_round=server_round, num_rounds=2, seconds=600.0)
        invited = host.invite(terms, RUN_ID, NODE, TrunkStart(tensors=trunk), sample=sample)
        fields = ConfigRecord(invited.invitation.to_fields())
        content = RecordDict({"arrays": silo, "config": fields})
        return Message(content, NODE, purpose), invited

    return make


@pytest.fixture
def context(run_config):
    def make(partition=0, **changes):
        node_config = {"partition-id": partition, "num-partitions": 3}
        return Context(RUN_ID, NODE, node_config, RecordDict(), {**run_config, **changes})

    return make
