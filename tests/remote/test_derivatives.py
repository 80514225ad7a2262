"""Derivatives of other orders and modes than a loss's first are refused; checkpoints are exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import make_batch, make_pair, take_steps
from tiny_models import tiny_model
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from flower_split import LocalTransport, SplitAdamW, attach_trunk, split_model
from flower_split.errors import AdapterError, FlowerSplitError
from flower_split.remote import session_spec
from flower_split.server.engine import TrunkEngine


def _eager() -> Any:
    model = tiny_model()
    model.set_attn_implementation("eager")  # whose kernels have all derivatives
    return make_pair(model)


def _of_offset(model: Any) -> Callable[[Tensor], Tensor]:
    ids = make_batch(rows=1, tokens=3)["input_ids"]
    embedded = model.get_input_embeddings()(ids).detach()
    return lambda offset: model(inputs_embeds=embedded + offset, labels=ids, use_cache=False).loss


def _hessian(model: Any) -> None:
    torch.autograd.functional.hessian(_of_offset(model), torch.zeros(1))


def _penalty(model: Any) -> None:
    embedded = model.get_input_embeddings()(make_batch()["input_ids"]).detach().requires_grad_()
    loss = model(inputs_embeds=embedded, labels=make_batch()["labels"]).loss
    (gradient,) = torch.autograd.grad(loss, embedded, create_graph=True)
    torch.autograd.grad(gradient.square().sum(), embedded)


def _batched(model: Any) -> None:
    offset = torch.zeros(1).requires_grad_()
    loss = _of_offset(model)(offset)[None]
    torch.autograd.grad(loss, offset, torch.ones(2, 1), is_grads_batched=True)


def _forward_mode(model: Any) -> None:
    with torch.no_grad(), forward_ad.dual_level():
        _of_offset(model)(forward_ad.make_dual(torch.zeros(1), torch.ones(1)))


def _twice(model: Any) -> None:
    loss = model(**make_batch()).loss
    loss.backward(retain_graph=True)
    loss.backward()


def _jacobian(model: Any) -> None:
    loss = _of_offset(model)
    torch.autograd.functional.jacobian(lambda at: torch.stack([loss(at)] * 2), torch.zeros(1))


def _of_two_outputs(model: Any) -> None:
    own = [p for n, p in model.named_parameters() if p.requires_grad and "layers.0" in n]
    output = model(**make_batch())
    for loss in (output.loss, output.logits.square().mean()):
        torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)


def _of_the_trunk(model: Any) -> None:
    loss = model(**make_batch()).loss
    torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize(
    ("derive", "words"),
    [
        (_hessian, "first derivatives of one loss at a time"),
        (_penalty, "leave out create_graph=True"),
        (_batched, "is_grads_batched"),
        (_twice, "second backward pass .* Add the losses up and call backward.. once"),
        (_jacobian, "a forward pass for every output"),
        (_of_two_outputs, "call the model again for each"),
        (_of_the_trunk, "of trunk_gradient, which is no weight.* leave it out of the inputs"),
        (_forward_mode, "forward-mode derivatives"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_derivatives_that_the_trunk_does_not_send_are_refused(derive: Any, words: str) -> None:
    with pytest.raises(FlowerSplitError, match=words):
        derive(_eager().client)


def test_gradients_that_are_asked_for_are_exact_where_the_trunks_tensors_are_parameters() -> None:
    pair = make_pair()
    engine = TrunkEngine(
        split_model(tiny_model(), 1, 2)[1],
        plan=pair.plan,
        initial=pair.trunk_state,
        shares_adapter=True,
    )
    spec = session_spec(pair.client, plan=pair.plan, trunk_adapters="federated")
    attach_trunk(pair.client, LocalTransport(engine, spec), trunk_parameters=True)
    found = []
    for model in (pair.client, pair.whole):
        own = [p for n, p in sorted(model.named_parameters()) if p.requires_grad]
        found.append(torch.autograd.grad(model(**make_batch()).loss, own))
    norms = [sorted(float(grad.norm()) for grad in grads) for grads in found]
    assert len(norms[0]) > 50
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_whole_model_is_exact(reentrant: bool) -> None:
    pair = make_pair()
    found = []
    for model in (pair.client, pair.whole):
        own = [p for p in model.parameters() if p.requires_grad]
        optimizer = (
            SplitAdamW(model, lr=1e-2)
            if model is pair.client
            else torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0)
        )
        losses = []
        for seed in range(2):
            batch = make_batch(seed=seed)
            embedded = model.get_input_embeddings()(batch.pop("input_ids")).detach()
            call = lambda e, model=model, batch=batch: model(inputs_embeds=e, **batch).loss  # noqa: E731
            loss = checkpoint(call, embedded.requires_grad_(), use_reentrant=reentrant)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        found.append(losses + take_steps(model, optimizer, 1))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def _called_with_others(model: Any) -> None:
    others = {n: p.detach() * 2 for n, p in model.named_parameters() if p.requires_grad}
    functional_call(model, others, (), make_batch())


def _written(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data * 2
    model(**make_batch())


def _from_vector(model: Any) -> None:
    own = [p for p in model.parameters() if p.requires_grad]
    vector = torch.nn.utils.parameters_to_vector(own).detach() * 2
    torch.nn.utils.vector_to_parameters(vector, own)
    model(**make_batch())


@pytest.mark.parametrize(
    "change", [_called_with_others, _written, _from_vector], ids=lambda one: one.__name__
)
def test_an_adapter_that_is_changed_before_the_first_pass_is_refused(change: Any) -> None:
    with torch.no_grad(), pytest.raises(AdapterError, match="were changed, and the trunk's"):
        change(make_pair().client)
