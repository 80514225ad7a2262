"""A client model stage by stage, so that several microbatches can be at the trunk at once.

The plain remote trunk waits for the network inside the forward and the backward pass, and an
autograd function that waits blocks its device's only autograd thread. Here the graph is cut at h2
instead, which is a leaf: the backward pass of the top ends there, its gradient is sent, and the
bottom's backward pass begins when g1 has arrived. No thread waits for anything meanwhile.
"""

import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flower_split.adapters.adalora.orthogonality import OrthogonalTerm, adds_term
from flower_split.adapters.prompts import encoder_parameters, stock_call
from flower_split.devices import autocasting
from flower_split.errors import AdapterError
from flower_split.privacy.silo_clipping import Clipped, watching
from flower_split.remote.ranks import opened, own_term
from flower_split.remote.trunk import RemoteTrunk, find_remote
from flower_split.segments import Halves, Pause
from flower_split.transport.messages import AdapterGrad, BackwardReply, BackwardRequest


class SplitStages:
    """The stages of a client model with a trunk attached, as `train_round` and `evaluate` take it.

    To be made anew after the model got other modules or another place for the trunk; a new
    session, other adapter values and modes are followed.

    Args:
        client_model: It shares its modules and gradients with the stages.
        autocast: Dtype of the silo's matrix products; None for that of its weights.
        measures: Whether the trunk's gradient is measured, so that it follows what a loop of one's
            own does to the silo's.

    Raises:
        ModelError: no trunk is attached, or a tensor is trained that is not in one half alone.
    """

    def __init__(
        self,
        client_model: nn.Module,
        *,
        autocast: torch.dtype | None = None,
        measures: bool = False,
    ) -> None:
        self._remote = find_remote(client_model)
        self._remote.late.follow()
        self._autocast = autocast
        self._measures = measures
        self._halves = Halves(
            client_model,
            self._remote,
            prepare=partial(stock_call, client_model),
            preparing=encoder_parameters(client_model),
        )
        self._term: OrthogonalTerm | None = None
        if adds_term(client_model):
            ranks = self._remote.ranks
            self._term = own_term(client_model, self._remote) if ranks is None else ranks.orthogonal

    @property
    def max_in_flight(self) -> int:
        """Microbatches whose activations the trunk keeps for this session."""
        return self._remote.transport.limits.max_in_flight

    def note_waited(self, seconds: float) -> None:
        """Count waiting for h2 and g1 among that of the session."""
        self._remote.transport.waits.add(seconds)

    def start(self, inputs: Mapping[str, Tensor], seed: int | None = None) -> "SplitPassage":
        """Compute h1 and send it; does not wait.

        Raises:
            AdapterError: the session's examples are clipped, and nobody here does it.
        """
        ids = inputs["input_ids"]
        clipped = _clipped(self._remote, ids)
        with autocasting(ids.device, self._autocast), watching(clipped):
            pause = self._halves.first(inputs, seed)
        return SplitPassage(
            self._remote,
            self._halves,
            pause,
            self._autocast,
            measures=self._measures,
            term=self._term,
            clipped=clipped,
        )


class SplitPassage:
    """One microbatch of a client model on its way.

    Every wait raises the `TrunkError` with which the trunk or the connection failed.

    Args:
        remote: Its session and numbers.
        halves: The client model.
        pause: The microbatch, at the trunk's place.
        autocast: As for `SplitStages`.
        measures: As for `SplitStages`.
        term: AdaLoRA's, where the model's adapter is of that method.
        clipped: Where the examples' gradients are told, in a session that clips them.

    Raises:
        ModelError: gradients are asked for in an evaluation session.
    """

    def __init__(
        self,
        remote: RemoteTrunk,
        halves: Halves,
        pause: Pause,
        autocast: torch.dtype | None = None,
        *,
        measures: bool = False,
        term: OrthogonalTerm | None = None,
        clipped: Clipped | None = None,
    ) -> None:
        self._autocast = autocast
        self._clipped = clipped
        self._term = None if term is None else _StagedTerm(term)
        self._remote, self._measures = remote, measures
        self._transport, self._border = remote.transport, remote.border
        self._halves = halves
        self._pause: Pause | None = pause
        self._leaf: Tensor | None = None
        self._prefix = None if pause.prefix is None else pause.prefix.trunk
        self._keeps = remote.keeps_graph(pause.hidden, self._prefix)
        if self._keeps and remote.own is not None:
            raise AdapterError(
                "microbatches in flight have no gradients for the trunk's adapter as parameters: "
                "with trunk_parameters=True call the model itself, and backward of its loss, in "
                "place of session.train() and session.accumulate()"
            )
        remote.measures = measures and self._keeps
        request, self._context = remote.next_request(
            pause.hidden, keep_graph=self._keeps, prefix=self._prefix
        )
        self._waiting: Future[Any] | None = self._transport.forward(request)
        # A passage that is dropped without a backward pass frees the trunk's activations too.
        self._release = weakref.finalize(self, self._transport.release, request.microbatch)
        self._release.atexit = False

    @property
    def awaited(self) -> Future[Any] | None:
        """h2 at first, g1 after `backward`."""
        return self._waiting

    def output(self, **arguments: Any) -> Any:
        """Wait for h2, then compute top and head: what the stock model returns."""
        pause, reply = self._under_way()
        hidden = opened(self._remote.ranks, reply.result())
        hidden = self._border.incoming("h2", hidden, self._context)
        if self._keeps:
            hidden = self._leaf = hidden.detach().requires_grad_()
        self._waiting = None
        with autocasting(hidden.device, self._autocast), watching(self._clipped):
            outputs = self._halves.second(pause, hidden, **arguments)
            if self._term is not None:
                ranks = self._remote.ranks
                trunk = None if ranks is None else ranks.take()
                self._term.add_to(outputs, trunk, keeps=self._keeps)
            return outputs

    def backward(self, loss: Tensor) -> None:
        """From the loss to h2, and send g2; does not wait.

        Where examples are clipped, the loss is the sum of theirs.
        """
        if self._clipped is not None and self._leaf is not None:
            self._clipped.differentiate(loss, self._leaf)
        elif loss.requires_grad:
            loss.backward()
        leaf, self._leaf = self._leaf, None
        if leaf is None or leaf.grad is None or self._pause is None:
            return
        self._release.detach()
        trains = self._remote.adapter.trains()
        if trains and self._measures and self._clipped is None:
            self._remote.follow_gradient()
        elif trains:
            self._remote.added_gradient()
        kept: AdapterGrad = ("measure" if self._measures else "add") if trains else "drop"
        if trains and self._clipped is not None:
            kept = "hold"
        self._waiting = self._transport.backward(
            BackwardRequest(
                step=self._context.step,
                microbatch=self._context.microbatch,
                grad=self._border.outgoing("g2", leaf.grad, self._context),
                wants_input_grad=self._pause.hidden.requires_grad,
                adapter_grad=kept,
                orthogonality_grad=0.0 if self._term is None else self._term.at_trunk,
                prefix_shape=() if self._prefix is None else tuple(self._prefix.shape),
            )
        )

    def finish(self) -> None:
        """Wait for g1, then go back through the bottom."""
        if self._waiting is not None and self._pause is not None:
            grad, pause = self._waiting.result(), self._pause
            norms = None
            if self._clipped is not None and isinstance(grad, BackwardReply):
                norms, grad = grad.squared_norms, grad.grad
            sources, grads = list[Tensor](), list[Tensor]()
            if pause.prefix is not None and self._prefix is not None:
                sources, grads = pause.prefix.reached()
                side = grad.prefix_grad if isinstance(grad, BackwardReply) else None
                sources.append(self._prefix)
                grads.append(self._border.prefix_grad(side, self._prefix, self._context))
                grad = grad.grad if isinstance(grad, BackwardReply) else grad
            elif isinstance(grad, BackwardReply):
                self._remote.measure_gradient(grad.norm, grad.largest)
                grad = grad.grad
            if grad is not None:
                sources.append(pause.hidden)
                grads.append(self._border.incoming("g1", grad, self._context))
                for end, at_end in () if self._term is None else self._term.at_silo():
                    sources.append(end)
                    grads.append(at_end)
            if self._clipped is not None:
                factors = self._clipped.finish(sources, grads, norms)
                if norms is not None:
                    self._transport.weigh(self._context.microbatch, factors)
            elif sources:
                torch.autograd.backward(sources, grads)
        self._pause = self._waiting = None

    def abandon(self) -> None:
        """Have the trunk free what it keeps for a backward pass that will not come."""
        self._pause = self._leaf = None
        self._release()

    def _under_way(self) -> tuple[Pause, Future[Any]]:
        if self._pause is None or self._waiting is None:
            raise RuntimeError("a passage is taken stage by stage: output, backward, finish")
        return self._pause, self._waiting


def _clipped(remote: RemoteTrunk, ids: Tensor) -> Clipped | None:
    """Where a microbatch's gradients are told by example; None where they are not clipped."""
    if not (remote.transport.spec.privacy.is_on and torch.is_grad_enabled()):
        return None
    if remote.clipping is None:
        raise AdapterError(
            "this session's examples are clipped (dp.noise), which its optimizer does: make "
            "SplitAdamW(model, ...) before the first microbatch (session.optimizer in a ClientApp)"
        )
    if remote.training:
        raise AdapterError(
            "DP-SGD (dp.noise) trains without dropout, whose masks are drawn for whole batches: "
            "call model.eval() before, as session.train() and session.accumulate() do"
        )
    return remote.clipping.begin(len(ids), ids.device)


class _StagedTerm:
    """AdaLoRA's term of one microbatch, whose graph is cut where that of the pass is."""

    def __init__(self, term: OrthogonalTerm) -> None:
        self._term = term
        self._before: Tensor | None = None
        self._leaves: list[Tensor | None] = [None, None]

    def add_to(self, outputs: Any, trunk: Tensor | None, *, keeps: bool) -> None:
        """Add it to the loss of `outputs`, which a backward pass may follow."""
        self._before = self._term.before()
        leaves = [part if part is None else part.detach() for part in (self._before, trunk)]
        if keeps:
            leaves = [None if leaf is None else leaf.requires_grad_() for leaf in leaves]
        self._leaves = leaves
        self._term.add_to(outputs, *leaves)

    @property
    def at_trunk(self) -> float:
        """Gradient of the loss at the trunk's part."""
        leaf = self._leaves[1]
        return 0.0 if leaf is None or leaf.grad is None else float(leaf.grad)

    def at_silo(self) -> list[tuple[Tensor, Tensor]]:
        """What comes before the trunk's place, and the gradient of the loss there."""
        before, leaf = self._before, self._leaves[0]
        if before is None or leaf is None or leaf.grad is None or not before.requires_grad:
            return []
        return [(before, leaf.grad)]
