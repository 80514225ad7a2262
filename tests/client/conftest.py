"""A hosted trunk of a tiny model, and messages that invite to it."""

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.config.run_config import read_run_config
from flower_split.server.starting import TrunkStart
from flower_split.strategies import TrunkHost
from flower_split.transport.invitation import Invitation

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
    """Makes a message as `SplitStrategy` does, and the ticket in it."""
    # Messages take their run and node from the process, as a Flower app's do.
    InProcessGrid(None, 0)

    def make(purpose="train", server_round=1, *, sample=False):
        silo, trunk = host.parts.split(host.begin(None))
        ticket = host.issue(RUN_ID, NODE, server_round, purpose, seconds=600.0)
        host.prepare(ticket, TrunkStart(tensors=trunk))
        invitation = Invitation(
            address=host.address,
            ticket=ticket,
            purpose=purpose,
            num_rounds=2,
            sample=sample,
            tls=host.uses_tls,
            ca=host.ca,
        )
        content = RecordDict({"arrays": silo, "config": ConfigRecord(invitation.to_fields())})
        return Message(content, NODE, purpose), ticket

    return make


@pytest.fixture
def context(run_config):
    def make(partition=0, **changes):
        node_config = {"partition-id": partition, "num-partitions": 3}
        return Context(RUN_ID, NODE, node_config, RecordDict(), {**run_config, **changes})

    return make
