"""What the first version called the classes that a checkpoint of a run may name."""

import inspect
from dataclasses import dataclass

import pytest

from flower_split import strategies
from flower_split.adapters import PersonalTensors
from flower_split.checkpoint import decode, encode
from flower_split.checkpoint.objects import label
from flower_split.checkpoint.written_names import current_name, written_name
from flower_split.config.model import LoraSettings
from flower_split.lowrank import Allowance, Factors, Instructions, Pair, Scaling
from flower_split.strategies.checkpoints.run_state import WrittenSessionState
from flower_split.strategies.lora.global_adapter import GlobalAdapter
from flower_split.strategies.lora.replies import SiloReply

OURS = "flower_split."

WRITTEN = {
    strategies.Alone: "strategies.alone:Alone",
    strategies.FFALoRA: "strategies.ffa_lora:FFALoRA",
    strategies.FLoRA: "strategies.flora:FLoRA",
    strategies.FedAvgLoRA: "strategies.fedavg_lora:FedAvgLoRA",
    strategies.FedExLoRA: "strategies.fedex_lora:FedExLoRA",
    strategies.FedSALoRA: "strategies.fedsa_lora:FedSALoRA",
    strategies.FlexLoRA: "strategies.flex_lora:FlexLoRA",
    strategies.HetLoRA: "strategies.het_lora:HetLoRA",
    strategies.LoraStrategy: "strategies.lora:LoraStrategy",
    strategies.PersonalParts: "strategies.personal:PersonalParts",
    strategies.RoLoRA: "strategies.ro_lora:RoLoRA",
    strategies.ScaffoldLoRA: "strategies.scaffold_lora:ScaffoldLoRA",
    strategies.ModuleResult: "strategies.lora_modules:ModuleResult",
    strategies.ModuleRound: "strategies.lora_modules:ModuleRound",
    strategies.NodeRecord: "strategies.history:NodeRecord",
    GlobalAdapter: "strategies.global_adapter:GlobalAdapter",
    SiloReply: "strategies.lora_replies:SiloReply",
    WrittenSessionState: "server.left_states:LeftState",
    PersonalTensors: "adapters.rounds:Kept",
    Allowance: "lowrank.allowance:Allowance",
    Factors: "lowrank.factors:Factors",
    Instructions: "lowrank.orders:Orders",
    Pair: "lowrank.names:Pair",
    Scaling: "lowrank.scaling:Scaling",
    LoraSettings: "config.model:LoraSettings",
}
"""Class, and the name by which every checkpoint knows it. It never changes, wherever it moves."""


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_a_class_is_written_under_its_first_name_and_found_by_it(kind):
    assert label(kind) == OURS + WRITTEN[kind]
    assert current_name(OURS + WRITTEN[kind]) == (kind.__module__, kind.__qualname__)


def test_every_strategy_that_a_run_config_names_is_in_the_table():
    made = {
        base
        for kind in strategies.INNER_STRATEGIES.values()
        if inspect.isclass(kind)
        for base in kind.__mro__
        if base.__module__.startswith(OURS)
    }
    assert made and made <= WRITTEN.keys()


def test_the_fields_that_are_written_are_those_of_the_first_version():
    own = Scaling(r=2, alpha=4.0)
    state = WrittenSessionState(
        silo="s", server_round=1, tag="t", tensors={}, kept=PersonalTensors(), scaling=own
    )
    node = encode(state, "x").tree
    assert list(node["fields"]) == ["silo", "server_round", "tag", "tensors", "kept", "scaling"]
    assert list(node["fields"]["kept"]["fields"]) == ["tensors", "scale"]
    assert list(node["fields"]["scaling"]["fields"]) == ["r", "alpha", "rslora"]
    record = strategies.NodeRecord(server_round=1, purpose="train", node_id=7)
    assert list(encode(record, "x").tree["fields"]) == [
        "server_round",
        "purpose",
        "node_id",
        "silo",
        "metrics",
        "statistics",
        "failure",
    ]


def test_what_the_first_version_wrote_is_read():
    node = {
        "kind": "object",
        "class": "flower_split.server.left_states:LeftState",
        "fields": {
            "silo": "north",
            "server_round": 2,
            "tag": "t",
            "tensors": {"kind": "dict", "items": []},
            "kept": {
                "kind": "object",
                "class": "flower_split.adapters.rounds:Kept",
                "fields": {"tensors": {"kind": "dict", "items": []}, "scale": 2.0},
            },
            "scaling": None,
        },
    }
    state = decode(node, {})
    assert isinstance(state, WrittenSessionState)
    assert (state.silo, state.server_round, state.kept.scale) == ("north", 2, 2.0)


@dataclass
class Own:
    """A third party's."""


def test_others_names_are_their_own():
    assert written_name("mine.module", "Thing.Inner") == "mine.module:Thing.Inner"
    assert current_name("mine.module:Thing.Inner") == ("mine.module", "Thing.Inner")
    assert label(Own()) == f"{Own.__module__}:Own"
