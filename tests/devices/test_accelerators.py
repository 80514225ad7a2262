"""A split model on an accelerator computes as the uncut model on it; the same on the CPU."""

from collections.abc import Iterator

import pytest
import torch
from pairs import LORA, make_batch, make_pair
from peft import PeftModel
from tiny_models import tiny_model

from flower_split.adapters import read_state
from flower_split.config.sections import TrainConfig
from flower_split.devices import resolve_device
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk
from flower_split.server.grpc.server import TrunkServer
from flower_split.training import WholeModel, train_round
from flower_split.training.batch import to_device
from flower_split.transport.grpc.transport import GrpcTransport

CLIPPED = OptimizerSettings(max_grad_norm=0.05)
CONFIG = TrainConfig(
    learning_rate=1e-2, accumulation=4, in_flight=4, local_steps=3, max_grad_norm=0.05
)
BATCHES = [make_batch(3, 9 + number % 4, seed=number) for number in range(12)]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative, of a loss: kernels of a device may add up in another order from run to run."""


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
        ),
        pytest.param(
            "mps",
            marks=pytest.mark.skipif(
                not torch.backends.mps.is_available(), reason="no Apple GPU here"
            ),
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return resolve_device(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


Sides = tuple[torch.nn.Module, PeftModel]


@pytest.fixture
def sides(device: torch.device, dtype: torch.dtype) -> Iterator[Sides]:
    """The cut model with its trunk behind a wire, and the uncut one, all on the device."""
    pair = make_pair(tiny_model().to(device, dtype), lora=LORA, optimizer=CLIPPED)
    with (
        TrunkServer(pair.engine, "127.0.0.1:0") as server,
        GrpcTransport(server.address, pair.transport.spec) as transport,
    ):
        pair.transport.close()
        attach_trunk(pair.client, transport)
        yield pair.client, pair.whole


def assert_close(sides: Sides, losses: tuple[float, float], dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    ours, theirs = read_state(sides[0]), read_state(sides[1])
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32
        # AdamW moves every value by about the learning rate, whatever the size of its gradient.
        assert float((tensor - theirs[name]).norm()) <= 0.2 * float(theirs[name].norm()), name


@pytest.mark.medium
def test_a_loop_of_ones_own(sides: Sides, device: torch.device, dtype: torch.dtype) -> None:
    client, whole = sides
    stock = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], weight_decay=0.0)
    totals = []
    for model, optimizer in ((client, SplitAdamW(client, lr=1e-3)), (whole, stock)):
        total = 0.0
        for batch in BATCHES[:4]:
            loss = model(**to_device(batch, device), use_cache=False).loss
            loss.backward()
            assert loss.device.type == device.type
            total += float(loss.detach())
            if optimizer is stock:
                torch.nn.utils.clip_grad_norm_(whole.parameters(), CLIPPED.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        totals.append(total)
    assert_close(sides, (totals[0], totals[1]), dtype)


@pytest.mark.sampled(keep=2)
@pytest.mark.medium
def test_microbatches_in_flight(sides: Sides, dtype: torch.dtype) -> None:
    client, whole = sides
    split = SplitAdamW(client, lr=0.0)
    stock = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], weight_decay=0.0)
    losses = (
        train_round(client, split, BATCHES, CONFIG, stages=SplitStages(client)).loss,
        train_round(whole, stock, BATCHES, CONFIG, stages=WholeModel(whole)).loss,
    )
    assert_close(sides, losses, dtype)


def test_generation(sides: Sides, device: torch.device) -> None:
    """The first token is the likeliest of both; later ones may part where two are nearly equal."""
    prompt = torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]], device=device)
    with torch.no_grad():
        ours, theirs = (
            side.eval().generate(  # type: ignore[operator]
                input_ids=prompt, max_new_tokens=6, num_beams=2, do_sample=False
            )
            for side in sides
        )
    assert ours.device.type == device.type
    if device.type == "cpu":
        assert torch.equal(ours, theirs)
    assert torch.equal(ours[:, :6], theirs[:, :6])
