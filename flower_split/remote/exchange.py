"""The autograd function behind the remote trunk: forward sends h1, backward sends g2."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flower_split.remote.border import incoming, outgoing
from flower_split.transport.base import Transport
from flower_split.transport.messages import BackwardRequest, ForwardRequest


class Exchange(torch.autograd.Function):
    """One microbatch's round trip through the trunk.

    `anchor` is an empty tensor that requires a gradient: it makes autograd call `backward` also
    where nothing below the cut is trained, because the trunk's adapters may be.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, hidden: Tensor, transport: Transport, request: ForwardRequest
    ) -> Tensor:
        """h2, (B, T, H)."""
        answer = transport.forward(request)
        with transport.waits.waiting():
            output = answer.result()
        ctx.transport, ctx.step, ctx.microbatch = transport, request.step, request.microbatch
        # Without its memory: only what g1 is to be like.
        ctx.like = hidden.detach().new_empty(0)
        ctx.mark = _Mark()
        # A graph that is dropped without a backward pass frees the trunk's activations too.
        ctx.release = weakref.finalize(ctx.mark, transport.release, request.microbatch)
        return incoming(output, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        """g1, (B, T, H), where the bottom needs it."""
        ctx.release.detach()
        answer = ctx.transport.backward(
            BackwardRequest(
                step=ctx.step,
                microbatch=ctx.microbatch,
                grad=outgoing(grad, ctx.transport.spec),
                wants_input_grad=ctx.needs_input_grad[1],
            )
        )
        with ctx.transport.waits.waiting():
            gradient = answer.result()
        return None, None if gradient is None else incoming(gradient, ctx.like), None, None


class _Mark:
    """Lives as long as the graph of one exchange."""
