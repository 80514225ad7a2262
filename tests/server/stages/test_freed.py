"""What a chain of stages holds of a pass is freed with its answer, and not when Python next looks.

An accelerator's memory is full long before Python's collector has seen objects enough to look.
"""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from asking import Asking, opened
from cut_training import HIDDEN, tensor
from hosting import eventually
from tiny_models import tiny_model
from torch import Tensor

from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.segments import split_model
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.local_chain import local_chain
from flower_split.transport.messages import AdapterCall, BackwardRequest, ForwardRequest

LAYERS = 4
"""Of the model; the trunk holds two, and a chain has a stage for each."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is freed that is still referred to, if only by itself."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def session() -> Iterator[Asking]:
    model = tiny_model(layers=LAYERS, hidden_size=HIDDEN)
    trunks = [split_model(model, first, LAYERS - first - 1)[1] for first in (1, 2)]
    plan = resolve_lora(model, LoraSettings(r=2))
    settings = EngineSettings(plan=plan, mode="federated", shares_adapter=True)
    chain = local_chain(trunks, settings)
    made = opened(chain, chain.describe(), None)
    yield made
    made.close()


def watched(*tensors: Tensor) -> list["weakref.ref[Tensor]"]:
    return [weakref.ref(one) for one in tensors]


def all_freed(held: list["weakref.ref[Any]"]) -> bool:
    return eventually(lambda: not any(one() is not None for one in held), 5.0)


def test_a_pass_that_was_answered_is_freed(session: Asking) -> None:
    with uncollected():
        h1 = tensor(0)
        h2 = session.forward(ForwardRequest(step=0, microbatch=0, hidden=h1))
        held = watched(h1, h2)
        del h1, h2
        assert all_freed(held)


def test_a_microbatch_is_freed_with_its_backward_pass(session: Asking) -> None:
    with uncollected():
        h1, g2 = tensor(0), tensor(1)
        h2 = session.forward(ForwardRequest(step=0, microbatch=0, hidden=h1, keep_graph=True))
        g1 = session.backward(BackwardRequest(step=0, microbatch=0, grad=g2))
        assert g1 is not None
        held = watched(h1, h2, g2, g1)
        del h1, h2, g2, g1
        assert all_freed(held)


def test_an_adapter_that_was_read_is_freed(session: Asking) -> None:
    with uncollected():
        answer = session.ask(AdapterCall(action="read"))
        held = watched(*answer.tensors)
        assert held
        del answer
        assert all_freed(held)
