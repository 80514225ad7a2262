"""The autograd function behind the remote trunk: forward sends h1, backward sends g2."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flower_split.remote.border import SiloBorder
from flower_split.transforms import TransformContext
from flower_split.transport.base import Transport
from flower_split.transport.messages import BackwardRequest, ForwardRequest


class Exchange(torch.autograd.Function):
    """One microbatch's round trip through the trunk.

    `anchor` is an empty tensor that requires a gradient: it makes autograd call `backward` also
    where nothing below the cut is trained, because the trunk's adapters may be.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        hidden: Tensor,
        transport: Transport,
        border: SiloBorder,
        request: ForwardRequest,
        context: TransformContext,
    ) -> Tensor:
        """h2, (B, T, H)."""
        answer = transport.forward(request)
        with transport.waits.waiting():
            output = answer.result()
        ctx.transport, ctx.border, ctx.context = transport, border, context
        ctx.mark = _Mark()
        # A graph that is dropped without a backward pass frees the trunk's activations too.
        ctx.release = weakref.finalize(ctx.mark, transport.release, request.microbatch)
        return border.incoming("h2", output, context)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """g1, (B, T, H), where the bottom needs it."""
        ctx.release.detach()
        answer = ctx.transport.backward(
            BackwardRequest(
                step=ctx.context.step,
                microbatch=ctx.context.microbatch,
                grad=ctx.border.outgoing("g2", grad, ctx.context),
                wants_input_grad=ctx.needs_input_grad[1],
            )
        )
        with ctx.transport.waits.waiting():
            gradient = answer.result()
        if gradient is not None:
            gradient = ctx.border.incoming("g1", gradient, ctx.context)
        return None, gradient, None, None, None, None


class _Mark:
    """Lives as long as the graph of one exchange."""
