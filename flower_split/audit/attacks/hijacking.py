"""H1: a hijacking trunk. Its g1 trains the silo's bottom to be read, and not to be useful.

As in feature-space hijacking (Pasquini, Ateniese and Bernaschi, "Unleashing the Tiger: Inference
Attacks on Split Learning", arXiv:2012.02670) the trunk's operator answers the gradient of an aim of
his own: that his inverter is certain of the token of every row. h2 is what an honest trunk answers,
and g1 is as long as its own, so that the silo's loss and the bounds on answers tell little.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flower_split.audit.attacks.learning import Inverter
from flower_split.audit.attacks.lone_silo import lone_silo
from flower_split.audit.subject import CutModel, Subject
from flower_split.config.wire import WireConfig
from flower_split.training.batch import Batch
from flower_split.transport.base import BackendSession, TrunkBackend
from flower_split.transport.messages import (
    BackwardReply,
    BackwardRequest,
    ForwardRequest,
    Reply,
    Request,
    SessionSpec,
    Ticket,
)

AIM_TOKENS = 4096
"""Tokens of a vocabulary at most among which the inverter is to be certain; of a larger one, those
that it takes for the likeliest anywhere in the microbatch."""


class Hijacker:
    """A `TrunkBackend` before another one, which answers other gradients than that one.

    Args:
        inner: Computes as an honest trunk.
        inverter: That is to be certain; of h1 as it arrives.
        hijacks: Whether gradients are replaced; else it looks on.
    """

    def __init__(self, inner: TrunkBackend, inverter: Inverter, *, hijacks: bool = True) -> None:
        self._inner = inner
        self._inverter = inverter
        self._prior = inverter.bias.detach().softmax(-1)
        self._hijacks = hijacks
        self.doubts = list[float]()
        """Of every microbatch that is trained on: the inverter's mean loss, in nats, against the
        tokens that it takes for the likeliest."""
        self.answered = 0
        """Gradients that were replaced."""

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> "Future[BackendSession]":
        """A session whose answers are replaced."""
        future: Future[BackendSession] = Future()
        future.set_result(_Session(self._inner.open(spec, ticket).result(), self))
        return future

    def gradient(self, h1: Tensor, mask: Tensor) -> Tensor:
        """Of the aim at h1, (B, T, H)."""
        leaf = h1.detach().to("cpu", torch.float32, copy=True).requires_grad_()
        with torch.enable_grad():
            made = self._inverter(leaf, mask)
            with torch.no_grad():
                likeliest = self._inverter.scores(made).argmax(-1)
                among = _among(likeliest[mask], len(self._inverter.table))
            believed = self._inverter.scores(made[mask], among).log_softmax(-1)
            doubt = -(believed.exp() * believed).sum(-1).mean()
            # Without it the inverter becomes certain of one token, whatever the text.
            mean = believed.exp().mean(0)
            usual = self._prior[among] / self._prior[among].sum()
            skewed = (mean * (mean.clamp_min(1e-12) / usual).log()).sum()
        self.doubts.append(float(doubt.detach()))
        gradient: Tensor = torch.autograd.grad(doubt + skewed, leaf)[0]
        return gradient

    def replaced(self, honest: Tensor, aimed: Tensor) -> Tensor:
        """What is answered in place of g1, (B, T, H)."""
        if not self._hijacks:
            return honest
        self.answered += 1
        length = honest.float().norm().cpu() / aimed.norm().clamp_min(1e-30)
        answered: Tensor = (aimed * length).to(honest.device, honest.dtype)
        return answered


class _Session:
    """One session; what is no gradient passes."""

    depth = 1

    def __init__(self, inner: BackendSession, hijacker: Hijacker) -> None:
        self.resumed = inner.resumed
        self._inner = inner
        self._hijacker = hijacker
        self._aims: dict[int, Tensor] = {}

    def submit(self, request: Request) -> Future[Reply]:
        """Answer `request` as the inner session does, but for g1."""
        future = self._inner.submit(request)
        if isinstance(request, ForwardRequest) and request.keep_graph:
            mask = request.attention_mask
            rows, tokens, _ = request.hidden.shape
            real = (
                torch.ones(rows, tokens, dtype=torch.bool)
                if mask is None
                else mask.detach().cpu().bool()
            )
            self._aims[request.microbatch] = self._hijacker.gradient(request.hidden, real)
        if not isinstance(request, BackwardRequest):
            return future
        aimed, reply = self._aims.pop(request.microbatch), future.result()
        changed: Future[Reply] = Future()
        if isinstance(reply, BackwardReply) and reply.grad is not None:
            reply = replace(reply, grad=self._hijacker.replaced(reply.grad, aimed))
        elif isinstance(reply, Tensor):
            reply = self._hijacker.replaced(reply, aimed)
        changed.set_result(reply)
        return changed

    def close(self) -> Future[None]:
        """Leave."""
        return self._inner.close()


@dataclass(frozen=True, kw_only=True)
class Hijacked:
    """What a silo's training under a trunk came to."""

    steps: int
    answered: int
    """Gradients that were replaced; 0 where nothing is trained before the trunk."""
    before: float
    """The inverter's loss against the tokens that it takes for the likeliest, in nats: of the
    batches' first pass."""
    after: float
    """And of their last one."""


def train_hijacked(
    subject: Subject,
    wire: WireConfig,
    batches: list[Batch],
    inverter: Inverter,
    *,
    seed: int,
    hijacks: bool = True,
    rate: float = 0.0,
    steps: int = 0,
    check: Callable[[], None] = lambda: None,
    then: Callable[[CutModel], None] | None = None,
) -> Hijacked:
    """Train as a silo alone would, on a trunk that hijacks, or on one that only looks on.

    Args:
        subject: What is audited.
        wire: Between silo and trunk.
        batches: Of a pass.
        inverter: Of the trunk's operator.
        seed: Of the random numbers.
        hijacks: Whether g1 is replaced.
        rate: The learning rate; 0 for what the run says.
        steps: How many; 0 for those of all of the run's rounds.
        check: Called after every step.
        then: Called with what records the silo as it is afterwards.

    Raises:
        DivergenceError: the training diverged.
    """
    made = list[Hijacker]()

    def between(backend: TrunkBackend) -> TrunkBackend:
        made.append(Hijacker(backend, inverter, hijacks=hijacks))
        return made[0]

    with lone_silo(subject, wire, between=between) as silo:
        taken = silo.train(batches, seed=seed, steps=steps, rate=rate, check=check)
        if then is not None:
            then(silo.recorder())
    doubts, size = made[0].doubts, min(len(batches), len(made[0].doubts))
    return Hijacked(
        steps=taken,
        answered=made[0].answered,
        before=sum(doubts[:size]) / max(1, size),
        after=sum(doubts[-size:]) / max(1, size),
    )


def _among(likeliest: Tensor, vocabulary: int) -> Tensor:
    """The tokens, in order, among which the inverter is to be certain."""
    if vocabulary <= AIM_TOKENS:
        return torch.arange(vocabulary)
    spread = torch.linspace(0, vocabulary - 1, AIM_TOKENS // 2).long()
    among: Tensor = torch.cat([likeliest, spread]).unique()
    return among
