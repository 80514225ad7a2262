"""What a loop does to the silo's gradients and optimizer the trunk does too, or it is refused."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pairs import Pair, backward, make_batch, make_pair, take_steps
from tiny_models import tiny_model
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from flower_split import GrpcTransport, SplitAdamW, TrunkServer, attach_trunk, split_model
from flower_split.errors import AdapterError, TrunkError
from flower_split.remote import SplitStages
from flower_split.server.engine import TrunkEngine
from flower_split.server.snapshots import SnapshotStore

Act = Callable[[Any, Any], list[float]]


def skipped(model: Any, optimizer: Any) -> list[float]:
    return [backward(model, 7), optimizer.zero_grad() or 0.0, *take_steps(model, optimizer)]


def skipped_by_the_model(model: Any, optimizer: Any) -> list[float]:
    return [backward(model, 7), model.zero_grad() or 0.0, *take_steps(model, optimizer)]


def stepped_twice(model: Any, optimizer: Any) -> list[float]:
    loss = backward(model, 7)
    optimizer.step()
    optimizer.step()
    optimizer.zero_grad()
    return [loss, *take_steps(model, optimizer)]


def never_zeroed(model: Any, optimizer: Any) -> list[float]:
    losses = []
    for step in range(3):
        losses.append(backward(model, step))
        optimizer.step()
    return losses


def zeros(model: Any, optimizer: Any) -> list[float]:
    losses = [*take_steps(model, optimizer), backward(model, 7)]
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    return losses + take_steps(model, optimizer)


def zeros_by_the_model(model: Any, optimizer: Any) -> list[float]:
    losses = [*take_steps(model, optimizer), backward(model, 7)]
    model.zero_grad(set_to_none=False)
    optimizer.step()
    return losses + take_steps(model, optimizer)


def looked_at(model: Any, optimizer: Any) -> list[float]:
    losses = take_steps(model, optimizer)
    wanted = [p for n, p in model.named_parameters() if p.requires_grad and "layers.0." in n]
    found = torch.autograd.grad(model(**make_batch(seed=7)).loss, wanted)
    return [*losses, found[-1].norm().item(), *take_steps(model, optimizer)]


def into_some(model: Any, optimizer: Any) -> list[float]:
    """`backward(inputs=...)` adds to those alone."""
    losses = take_steps(model, optimizer)
    wanted = [p for n, p in model.named_parameters() if p.requires_grad and "layers.0." in n]
    model(**make_batch(seed=7)).loss.backward(inputs=wanted)
    optimizer.zero_grad()
    return losses + take_steps(model, optimizer)


def other_constants(model: Any, optimizer: Any) -> list[float]:
    for group in optimizer.param_groups:
        group.update(weight_decay=0.3, betas=(0.8, 0.95), eps=1e-6)
    return take_steps(model, optimizer)


def rolled_back(model: Any, optimizer: Any) -> list[float]:
    losses = take_steps(model, optimizer)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    losses += take_steps(model, optimizer)
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    return losses + take_steps(model, optimizer)


def only_the_model_rolled_back(model: Any, optimizer: Any) -> list[float]:
    losses = take_steps(model, optimizer)
    state = copy.deepcopy(model.state_dict())
    losses += take_steps(model, optimizer)
    model.load_state_dict(state)
    return losses + take_steps(model, optimizer)


def saved_and_loaded(model: Any, optimizer: Any) -> list[float]:
    losses = take_steps(model, optimizer)
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    losses += take_steps(model, optimizer)
    model.load_adapter(folder, "default", is_trainable=True)
    return losses + take_steps(model, optimizer)


FOLLOWED = [
    skipped,
    skipped_by_the_model,
    stepped_twice,
    never_zeroed,
    zeros,
    zeros_by_the_model,
    looked_at,
    into_some,
    other_constants,
    rolled_back,
    only_the_model_rolled_back,
    saved_and_loaded,
]


def reference(pair: Pair) -> torch.optim.AdamW:
    own = [p for p in pair.whole.parameters() if p.requires_grad]
    return torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0)


def assert_alike(pair: Pair, *, within: float = 0.0) -> None:
    with torch.no_grad():
        batch = make_batch(seed=99)
        cut, whole = pair.client(**batch).logits, pair.whole(**batch).logits
    assert float((cut - whole).abs().max()) <= within


@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize("act", FOLLOWED, ids=lambda act: act.__name__)
@pytest.mark.parametrize("mode", ["federated", "shared", "frozen"])
def test_the_trunk_follows(mode: str, act: Act) -> None:
    pair = make_pair(mode=mode)
    if mode == "frozen":
        for name, parameter in pair.whole.named_parameters():
            if "layers.1." in name or "layers.2." in name:
                parameter.requires_grad_(False)
                if "lora_B" in name:
                    parameter.data.zero_()
    assert act(pair.client, SplitAdamW(pair.client, lr=1e-2)) == act(pair.whole, reference(pair))
    assert_alike(pair)


@pytest.mark.medium
def test_a_state_that_was_loaded_counts_in_stages_too() -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    take_steps(pair.client, optimizer)
    state = copy.deepcopy(pair.client.state_dict())
    batch = make_batch(seed=50)
    stages = SplitStages(pair.client)
    with torch.no_grad():
        expected = stages.start(batch).output().loss
    take_steps(pair.client, optimizer)
    pair.client.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(stages.start(batch).output().loss, expected)


@contextmanager
def over_grpc(pair: Pair, **engine: Any) -> Iterator[Pair]:
    """The same pair with a trunk behind a server; further arguments are the engine's."""
    spec = pair.transport.spec
    pair.transport.close()
    _, trunk = split_model(tiny_model(), 1, 2)
    hosted = TrunkEngine(trunk, plan=pair.plan, initial=pair.trunk_state, **engine)
    with TrunkServer(hosted) as server:
        transport = GrpcTransport(server.address, spec)
        try:
            attach_trunk(pair.client, transport, trunk_parameters="shares_adapter" in engine)
            yield pair
        finally:
            transport.close()


@pytest.mark.medium
@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("act", FOLLOWED, ids=lambda act: act.__name__)
def test_the_trunk_follows_over_grpc(act: Act) -> None:
    with over_grpc(make_pair()) as pair:
        cut = act(pair.client, SplitAdamW(pair.client, lr=1e-2))
        assert cut == act(pair.whole, reference(pair))
        assert_alike(pair)


@pytest.mark.medium
@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("bound", [1e-3, 0.05, 1.0, 100.0])
@pytest.mark.parametrize("foreach", [True, False])
def test_gradients_are_clipped_by_the_norm_over_both_sides(bound: float, foreach: bool) -> None:
    pair = make_pair()
    split, whole = SplitAdamW(pair.client, lr=1e-2), reference(pair)
    for step in range(3):
        norms = []
        for model, optimizer in ((pair.client, split), (pair.whole, whole)):
            for microbatch in range(2):
                backward(model, 2 * step + microbatch)
            norms.append(clip_grad_norm_(model.parameters(), bound, foreach=foreach))
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(norms[0], norms[1], rtol=1e-6, atol=0.0)
    assert_alike(pair, within=1e-6)


@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("bound", [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0])
def test_gradients_are_clipped_by_their_values(bound: float) -> None:
    pair = make_pair()
    for model, optimizer in (
        (pair.client, SplitAdamW(pair.client, lr=1e-2)),
        (pair.whole, reference(pair)),
    ):
        for step in range(3):
            backward(model, step)
            clip_grad_value_(model.parameters(), bound)
            optimizer.step()
            optimizer.zero_grad()
    assert_alike(pair)


@pytest.mark.medium
def test_a_gradient_scaler_is_followed_also_where_it_skips_a_step() -> None:
    pair = make_pair()
    for model, optimizer in (
        (pair.client, SplitAdamW(pair.client, lr=1e-2)),
        (pair.whole, reference(pair)),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            loss = model(**make_batch(seed=step)).loss
            scaler.scale(loss * float("inf") if step == 1 else loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert_alike(pair, within=1e-6)


def some(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and "layers.0." in name:
            parameter.grad.mul_(0.5)


def one_removed(model: Any) -> None:
    next(p for p in model.parameters() if p.grad is not None).grad = None


def noise(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.add_(torch.randn_like(parameter.grad))


@pytest.mark.parametrize("change", [some, one_removed, noise], ids=lambda c: c.__name__)
def test_gradients_changed_otherwise_are_refused(change: Callable[[Any], None]) -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    backward(pair.client, 0)
    change(pair.client)
    with pytest.raises(AdapterError, match="changed by hand"):
        optimizer.step()


@pytest.mark.medium
def test_gradients_of_several_processes_say_what_works() -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    backward(pair.client, 0)
    noise(torch.nn.ParameterList(p for p in pair.client.parameters() if p.numel() > 3))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(AdapterError, match=r"trunk_parameters=True\), .* several processes"):
            optimizer.step()
    finally:
        dist.destroy_process_group()


def test_a_gradient_clipped_in_the_midst_of_a_step_is_refused() -> None:
    pair = make_pair()
    SplitAdamW(pair.client, lr=1e-2)
    backward(pair.client, 0)
    clip_grad_norm_(pair.client.parameters(), 1e-3)
    with pytest.raises(AdapterError, match="after the last one of a step"):
        backward(pair.client, 1)


def test_constants_that_the_trunk_has_none_for_are_refused() -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    backward(pair.client, 0)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(AdapterError, match="no amsgrad"):
        optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = False
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": 1.0})
    with pytest.raises(AdapterError, match="must share betas, eps and weight_decay"):
        optimizer.step()


def test_a_trunk_trained_without_a_step_is_an_error() -> None:
    """A loop whose own optimizer never moves the silo's tensors, as with a learning rate of 0."""
    pair = make_pair()
    backward(pair.client, 0)
    remote = next(m for m in pair.client.modules() if hasattr(m, "check_stepped"))
    with pytest.raises(AdapterError, match="no optimizer step"):
        remote.finish()


@pytest.mark.medium
def test_an_optimizer_state_of_another_optimizer_is_refused() -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    state = optimizer.state_dict()
    del state["trunk"]
    with pytest.raises(AdapterError, match="no tag of the trunk's half"):
        optimizer.load_state_dict(state)


def test_a_snapshot_that_is_gone_is_named() -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    state = optimizer.state_dict() | {"trunk": "0" * 64}
    with pytest.raises(TrunkError, match="no snapshot 00000000"):
        optimizer.load_state_dict(state)


@pytest.mark.medium
def test_snapshots_outlive_the_process_in_a_folder(tmp_path: Path) -> None:
    def session(folder: Path) -> Any:
        return over_grpc(make_pair(), snapshots=SnapshotStore(folder))

    with session(tmp_path) as pair:
        optimizer = SplitAdamW(pair.client, lr=1e-2)
        take_steps(pair.client, optimizer)
        states = copy.deepcopy((pair.client.state_dict(), optimizer.state_dict()))
        expected = take_steps(pair.client, optimizer, 3)
    with session(tmp_path) as pair:
        optimizer = SplitAdamW(pair.client, lr=1e-2)
        pair.client.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        assert take_steps(pair.client, optimizer, 3) == expected


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda own: torch.optim.SGD(own, lr=0.5, momentum=0.9),
    lambda own: torch.optim.Adagrad(own, lr=1e-2),
    lambda own: torch.optim.AdamW(own, lr=1e-2, amsgrad=True),
    lambda own: torch.optim.Rprop(own, lr=1e-3),
]


@pytest.mark.medium
@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("act", [*FOLLOWED, clip_grad_norm_], ids=lambda act: act.__name__)
@pytest.mark.sampled(keep=3)
def test_any_optimizer_trains_the_trunks_adapter_as_parameters(act: Act, make: Any) -> None:
    def clipped(model: Any, optimizer: Any) -> list[float]:
        losses = []
        for step in range(3):
            losses.append(backward(model, step))
            clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
        return losses

    act = clipped if act is clip_grad_norm_ else act
    with over_grpc(make_pair(), shares_adapter=True) as pair:
        if act is other_constants and "weight_decay" not in make([torch.ones(1)]).param_groups[0]:
            pytest.skip("the optimizer has no weight decay")
        cut = act(pair.client, make([p for p in pair.client.parameters() if p.requires_grad]))
        uncut = act(pair.whole, make([p for p in pair.whole.parameters() if p.requires_grad]))
        assert cut == pytest.approx(uncut, rel=1e-6)
        assert_alike(pair, within=1e-6)


def test_a_trunk_that_does_not_share_its_adapter_says_so() -> None:
    pair = make_pair()
    with pytest.raises(AdapterError, match="does not give its part of the adapter"):
        attach_trunk(pair.client, pair.transport, trunk_parameters=True)
