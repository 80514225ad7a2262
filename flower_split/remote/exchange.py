"""The autograd function behind the remote trunk: forward sends h1, backward sends g2."""

import math
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from flower_split.errors import AdapterError, ModelError
from flower_split.remote.border import SiloBorder
from flower_split.remote.ranks import SessionRanks, opened
from flower_split.remote.trunk_adapter import TrunkAdapter
from flower_split.transforms import TransformContext
from flower_split.transport.base import Transport
from flower_split.transport.messages import (
    AdapterGrad,
    BackwardReply,
    BackwardRequest,
    ForwardReply,
    ForwardRequest,
)


class SessionEnd(Protocol):
    """The silo's end of a session, as an exchange needs it."""

    transport: Transport
    border: SiloBorder
    adapter: TrunkAdapter

    @property
    def ranks(self) -> SessionRanks | None:
        """AdaLoRA's, where the session has it."""
        ...

    def follow_gradient(self) -> None:
        """Have the trunk's gradient follow what was done to the silo's since the last pass."""
        ...

    def told_gradient(self, norm: float, largest: float) -> Tensor:
        """What autograd has to add to the mirror for the trunk's gradient of these measures."""
        ...

    def own_parameters(self, kept: AdapterGrad) -> Sequence[Tensor]:
        """The adapter's parameters that are given their gradients here."""
        ...

    def own_gradients(self, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The adapter's gradients for autograd, where its tensors are parameters here."""
        ...


class Exchange(torch.autograd.Function):
    """One microbatch's round trip through the trunk.

    `mirror` is the parameter whose gradient stands for that of the trunk's adapter: it makes
    autograd call `backward` also where nothing below the cut is trained. `prefix` is that of the
    request, with its graph. `parameters` are the trunk's adapter itself, where the silo holds it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mirror: Tensor,
        hidden: Tensor,
        remote: SessionEnd,
        request: ForwardRequest,
        context: TransformContext,
        prefix: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """h2, (B, T, H); with AdaLoRA, and the trunk's part of its term, a scalar."""
        transport = remote.transport
        if transport.spec.privacy.is_on:
            raise AdapterError(
                "in a session with DP-SGD (dp.noise) gradients are clipped by example, which "
                "loss.backward() cannot do: take session.accumulate(), or "
                "flower_split.training.Accumulator with SplitStages and clipped=True"
            )
        answer = transport.forward(request)
        with transport.waits.waiting():
            reply = answer.result()
        output = opened(remote.ranks, reply)
        ctx.remote, ctx.transport, ctx.border = remote, transport, remote.border
        ctx.context, ctx.trains = context, remote.adapter.trains() and not request.adapter.disabled
        ctx.prefix = None if prefix is None else prefix.detach()
        ctx.leaves = [_accumulator(leaf) for leaf in (parameters or (mirror,))]
        ctx.mark, ctx.is_served = _Mark(), False
        # A graph that is dropped without a backward pass frees the trunk's activations too.
        ctx.release = weakref.finalize(ctx.mark, transport.release, request.microbatch)
        entered = remote.border.incoming("h2", output, context)
        if not isinstance(reply, ForwardReply):
            return entered
        return entered, torch.tensor(reply.orthogonality, device=entered.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *more: Tensor) -> tuple[Tensor | None, ...]:
        """g1, (B, T, H), where the bottom needs it.

        Raises:
            ModelError: second derivatives are asked for, or those of several outputs, at once or
                one after the other.
        """
        _check_order(grad)
        if ctx.is_served:
            raise ModelError(
                "a second backward pass through one forward pass: the trunk frees its graph with "
                "the first, whatever retain_graph says. Add the losses up and call backward() "
                "once, ask one torch.autograd.grad for all inputs, or call the model again for "
                "each (jacobian: a forward pass for every output)"
            )
        ctx.is_served = True
        ctx.release.detach()
        at_term = float(more[0]) if more else 0.0
        remote: SessionEnd = ctx.remote
        # Not so in autograd.grad for other tensors, nor in backward(inputs=...) without them.
        # Nor where the adapter is frozen or disabled while the backward pass is made.
        wanted = ctx.trains and any(map(_is_reached, ctx.leaves)) and remote.adapter.trains()
        parameters = ctx.needs_input_grad[6:]
        if not parameters and any(map(_is_asked_for, ctx.leaves)):
            raise ModelError(
                "torch.autograd.grad was asked for the gradient of trunk_gradient, which is no "
                "weight: the trunk's gradient stays there. Call backward(), leave it out of the "
                "inputs, or attach_trunk(..., trunk_parameters=True)"
            )
        kept: AdapterGrad = "drop"
        mirrored: Tensor | None
        own: tuple[Tensor | None, ...]
        if wanted:
            kept = "return" if parameters else "measure"
        if kept == "measure":
            remote.follow_gradient()
        if not (grad.is_meta or (math.isfinite(at_term) and bool(torch.isfinite(grad).all()))):
            # As a gradient scaler finds out that the scale was too large, and skips the step.
            ctx.transport.release(ctx.context.microbatch)
            gone = grad.new_full(grad.shape, torch.nan) if ctx.needs_input_grad[1] else None
            mirrored = remote.told_gradient(torch.nan, torch.nan) if kept == "measure" else None
            own = tuple(torch.full_like(p, torch.nan) for p in remote.own_parameters(kept))
            side = None if ctx.prefix is None else torch.full_like(ctx.prefix, torch.nan)
            return mirrored, gone, None, None, None, side, *(own or (None for _ in parameters))
        answer = ctx.transport.backward(
            BackwardRequest(
                step=ctx.context.step,
                microbatch=ctx.context.microbatch,
                grad=ctx.border.outgoing("g2", grad, ctx.context),
                wants_input_grad=ctx.needs_input_grad[1],
                adapter_grad=kept,
                orthogonality_grad=at_term,
                prefix_shape=() if ctx.prefix is None else tuple(ctx.prefix.shape),
            )
        )
        with ctx.transport.waits.waiting():
            reply = answer.result()
        mirrored = side = None
        own = tuple(None for _ in parameters)
        gradient = reply
        if isinstance(reply, BackwardReply):
            gradient = reply.grad
            if ctx.prefix is not None:
                side = ctx.border.prefix_grad(reply.prefix_grad, ctx.prefix, ctx.context)
            elif kept == "return":
                own = remote.own_gradients(reply.adapter_grads)
            else:
                mirrored = remote.told_gradient(reply.norm, reply.largest)
        if gradient is not None:
            gradient = ctx.border.incoming("g1", gradient, ctx.context)
        return mirrored, gradient, None, None, None, side, *own


def _check_order(grad: Tensor) -> None:
    """Raise `ModelError` in a backward pass that is to be differentiated itself, or batched.

    torch leaves what a function does not differentiate twice out of sums, and says nothing.
    """
    batched = torch._C._functorch.is_legacy_batchedtensor(grad)
    if torch.is_grad_enabled() or batched or torch._C._functorch.is_batchedtensor(grad):
        raise ModelError(
            "the trunk sends first derivatives of one loss at a time: leave out create_graph=True "
            "(hessian, vhp and gradient penalties need it), vectorize and is_grads_batched"
        )


def _accumulator(leaf: Tensor) -> Any:
    """The node that adds to `leaf.grad`; None for a tensor that needs none."""
    if not leaf.requires_grad:
        return None
    with torch.enable_grad():
        made = leaf.view_as(leaf).grad_fn
    return None if made is None else made.next_functions[0][0]


def _is_reached(node: Any) -> bool:
    """Whether the backward pass that is under way has a gradient for the leaf of `node`."""
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # so torch says that autograd.grad was asked for this leaf's
        return True


def _is_asked_for(node: Any) -> bool:
    """Whether autograd.grad is to return the gradient of the leaf of `node`."""
    try:
        if node is not None:
            torch._C._will_engine_execute_node(node)
    except RuntimeError:
        return True
    return False


class _Mark:
    """Lives as long as the graph of one exchange."""
