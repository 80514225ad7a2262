"""The chain of transforms: order out, reverse order in, and what a transform may not do."""

from typing import Any

import pytest
import torch
from affine_backend import spec
from torch import Tensor

from flower_split.config.wire import WireConfig
from flower_split.errors import HandshakeError, TransformError, WireError
from flower_split.transforms import Transform, TransformChain, TransformContext
from flower_split.transforms.table import TRANSFORM_TABLE
from flower_split.transport.messages import SessionSpec

HERE = TransformContext(
    step=0, microbatch=0, attention_mask=None, device=torch.device("cpu"), dtype=torch.float32
)


class Double(Transform):
    name = "double"

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        return 2 * tensor

    def incoming(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        return tensor / 2


class Shift(Transform):
    name = "shift"
    hops = ("h1",)

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        return tensor + 1

    def incoming(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        return tensor - 1


class Wrong(Transform):
    name = "wrong"

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        return tensor.double() if hop == "h1" else 1 / 0


def naming(*names: str) -> SessionSpec:
    """The specification of a session whose transforms no installed package has."""
    wire = WireConfig()
    object.__setattr__(wire, "transforms", names)
    return spec(wire=wire)


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Any:
    own = {kind.name: kind for kind in (Double, Shift, Wrong)}
    monkeypatch.setattr(TRANSFORM_TABLE, "_own", own)

    return lambda *names: TransformChain(naming(*names), "silo")


def test_an_empty_chain_passes_tensors_on_in_the_sessions_dtype(chain: Any) -> None:
    h1 = torch.ones(1, 2, 3)
    assert chain().outgoing("h1", h1, HERE) is not None
    assert torch.equal(chain().incoming("h2", h1, HERE), h1)
    with pytest.raises(WireError, match=r"h2 is torch\.float64, expected torch\.float32"):
        chain().incoming("h2", h1.double(), HERE)


@pytest.mark.parametrize(("names", "left"), [(("double", "shift"), 7), (("shift", "double"), 8)])
def test_what_leaves_passes_in_order_and_what_enters_in_reverse(
    chain: Any, names: tuple[str, ...], left: int
) -> None:
    tensor = torch.full((1, 2, 3), 3.0)
    out = chain(*names).outgoing("h1", tensor, HERE)
    assert torch.equal(out, torch.full_like(tensor, left))
    assert torch.equal(chain(*names).incoming("h1", out, HERE), tensor)
    assert torch.equal(chain(*names).outgoing("g2", tensor, HERE), 2 * tensor)


def test_a_transform_that_fails_or_returns_something_else_is_named(chain: Any) -> None:
    with pytest.raises(TransformError, match=r"'wrong' at the silo, for h1, returned"):
        chain("wrong").outgoing("h1", torch.ones(1, 2, 3), HERE)
    with pytest.raises(TransformError, match=r"'wrong' .* for g2, failed: ZeroDivisionError"):
        chain("wrong").outgoing("g2", torch.ones(1, 2, 3), HERE)


def test_an_unknown_transform_refuses_the_session() -> None:
    with pytest.raises(HandshakeError, match=r"there is no 'missing' at the trunk"):
        TransformChain(naming("missing"), "trunk")
