"""What a trunk service and a strategy tell each other of cuts that silos choose."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from flower_split.adapters import SessionState
from flower_split.adapters.plan import AdapterPlan
from flower_split.config.run_config import read_run_config
from flower_split.control.content import Content
from flower_split.control.messages import (
    layout_content,
    read_layout,
    read_states,
    states_content,
)
from flower_split.control.run_settings import read_settings, told_settings
from flower_split.control.served_model import ServedModel
from flower_split.errors import HandshakeError, WireError
from flower_split.server.hosting.layout import RunLayout
from flower_split.server.session_states import SiloState

NAMES = tuple(f"m.layers.{n}.q.lora_{part}.weight" for n in range(3) for part in "AB")
PLAN = AdapterPlan(
    r=1,
    alpha=1.0,
    dropout=0.0,
    rslora=False,
    fan_in_fan_out=False,
    targets=("q",),
    modules=tuple(f"m.layers.{n}.q" for n in range(3)),
    shapes=tuple((name, (1, 1)) for name in NAMES),
)
LAYOUT = RunLayout(
    mode="federated",
    plan=PLAN,
    trunk_names=NAMES[2:],
    either_names=NAMES[2:4],
    initial={name: torch.zeros(1, 1) for name in NAMES},
    parameters=9,
)


def test_a_layout_tells_what_either_party_may_hold_and_nothing_where_that_is_nothing() -> None:
    assert read_layout(layout_content(LAYOUT)).either_names == NAMES[2:4]
    plain = layout_content(replace(LAYOUT, either_names=()))
    assert "either" not in plain.text
    assert read_layout(plain).either_names == ()


@pytest.mark.parametrize("either", [NAMES[:1], ["x"], 5, [None], "ab"])
def test_what_the_trunk_does_not_hold_is_no_layout(either: Any) -> None:
    content = layout_content(LAYOUT)
    with pytest.raises(WireError, match="layout is malformed"):
        read_layout(Content(text={**content.text, "either": either}, tensors=content.tensors))


STATE = SiloState(silo="a", server_round=1, tag="0" * 64, state=SessionState(), cuts=(2, 1))


def test_a_session_state_is_told_with_its_cut() -> None:
    plain = replace(STATE, cuts=None)
    read = read_states(states_content([STATE, plain]))
    assert [one.cuts for one in read] == [(2, 1), None]
    assert "cuts" not in states_content([plain]).text[0]


@pytest.mark.parametrize("cuts", [None, 3, [1], [1, 2, 3], ["x", 1], {"a": 1}, [None, 1]])
def test_a_cut_that_is_none_is_malformed(cuts: Any) -> None:
    content = states_content([STATE])
    with pytest.raises(WireError, match="session states is malformed"):
        read_states(Content(text=[{**content.text[0], "cuts": cuts}], tensors={}))


def test_bounds_are_told_to_a_service_which_delivers_no_layers_of_its_trunk() -> None:
    values = {"model.name": "m", "split.max-bottom-layers": 3, "split.bottoms": "3, 1"}
    config = read_run_config(values)
    assert read_settings(told_settings(config)).split == config.split
    ServedModel.of_run(config).check(config)
    given = read_run_config({**values, "model.delivery": "server"})
    with pytest.raises(HandshakeError, match=r"model\.delivery: the service gives silos"):
        ServedModel.of_run(given).check(given)
    dora = read_run_config({**values, "peft.use-dora": True})
    with pytest.raises(HandshakeError, match="with plain LoRA alone, and the run has"):
        ServedModel.of_run(dora).check(dora)
    narrow = read_run_config({"model.name": "m", "model.delivery": "server"})
    ServedModel.of_run(narrow).check(narrow)
    with pytest.raises(HandshakeError, match=r"split\.bottom-layers: the service has 1"):
        ServedModel.of_run(config).check(
            read_run_config({"model.name": "m", "split.bottom-layers": 2})
        )
