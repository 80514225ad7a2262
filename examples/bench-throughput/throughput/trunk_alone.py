"""The trunk alone: what it does for many silos that are elsewhere, and what they cost it."""

import ctypes
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from flower_split import (
    TrunkEngine,
    split_model,
)
from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.reporting.machine import resident_bytes
from flower_split.server.compute.queue import BatchSettings
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest
from throughput.process import processes, set_up
from throughput.shapes import Shape, random_model

LORA = LoraSettings(r=8)
# Silos that compute on these same cores come within tens of milliseconds of each other.
BATCHED = BatchSettings(batching=True, gather_ms=20.0)
SERIAL = BatchSettings()
SECONDS = 600.0
"""After which a process that does not answer is given up."""


class TrunkAlone:
    """A trunk whose silos are elsewhere: each sends its next request as soon as it is answered.

    Args:
        shape: Of the model and of a step.
        silos: How many there are.
        settings: How the trunk puts their requests together.
    """

    def __init__(self, shape: Shape, silos: int, settings: BatchSettings) -> None:
        model = random_model(shape)
        _, trunk = split_model(model, shape.bottom, shape.top)
        self._engine = TrunkEngine(trunk, plan=resolve_lora(model, LORA), batching=settings)
        opening = [self._engine.open(self._engine.describe(), None) for _ in range(silos)]
        self._sessions = [session.result() for session in opening]
        generator = torch.Generator().manual_seed(0)
        size = (shape.rows, shape.tokens, shape.hidden)
        self._h1 = [torch.randn(size, generator=generator) for _ in self._sessions]
        self._step = 0
        self._microbatches = shape.microbatches
        self.tokens = silos * shape.step_tokens
        """Of one step."""

    def step(self) -> list[float]:
        """The microbatches and the optimizer step of every silo; seconds until each answer."""
        step, self._step = self._step, self._step + 1
        waits = []
        for number in range(step * self._microbatches, self._step * self._microbatches):
            h2s, waited = self._ask(
                [
                    ForwardRequest(step=step, microbatch=number, hidden=h1, keep_graph=True)
                    for h1 in self._h1
                ]
            )
            waits += waited
            _, waited = self._ask(
                [BackwardRequest(step=step, microbatch=number, grad=h2) for h2 in h2s]
            )
            waits += waited
        for session in self._sessions:
            session.submit(StepRequest(step=step, learning_rate=1e-4)).result()
        return waits

    def close(self) -> None:
        """End all sessions."""
        for session in self._sessions:
            session.close().result()

    @property
    def adapter_bytes(self) -> int:
        """Of all silos' adapters, each with two moments; a step leaves no gradients."""
        return sum(3 * t.nbytes for t in self._engine.shared_state().values()) * len(self._sessions)

    def _ask(
        self, requests: Sequence[ForwardRequest] | Sequence[BackwardRequest]
    ) -> tuple[list[Tensor], list[float]]:
        start = time.perf_counter()
        ends: dict[int, float] = {}
        futures: list[Future[Any]] = []
        with self._engine.queue.exclusive():  # all of them wait at once
            for number, (session, request) in enumerate(zip(self._sessions, requests, strict=True)):
                future = session.submit(request)
                future.add_done_callback(
                    lambda _, number=number: ends.__setitem__(number, time.perf_counter() - start)
                )
                futures.append(future)
        return [future.result() for future in futures], list(ends.values())


def frozen_batched_over_serial(shape: Shape, silos: int, turns: int) -> float:
    """What one batch gains where no layer has an adapter: a bound for any way to compute them."""
    _, trunk = split_model(random_model(shape), shape.bottom, shape.top)
    hidden = torch.randn(silos * shape.rows, shape.tokens, shape.hidden)

    def seconds(rows: int) -> float:
        start = time.perf_counter()
        for part in hidden.split(rows):
            leaf = part.clone().requires_grad_()
            torch.autograd.grad(trunk(leaf), leaf, part)
        return time.perf_counter() - start

    ratios = [seconds(shape.rows) / seconds(len(hidden)) for _ in range(turns + 1)]
    return statistics.median(ratios[1:])  # the first turn warms up


def trunk_memory(shape: Shape, silos: int) -> float:
    """Bytes of a trunk that has served `silos`, without adapters, and with nothing in flight."""
    with processes().Pool(1) as pool:
        return float(pool.apply_async(_trunk_memory, (shape, silos)).get(SECONDS))


def _trunk_memory(shape: Shape, silos: int) -> int:
    set_up(threads=1)
    before = resident_bytes()
    alone = TrunkAlone(shape, silos, BATCHED)
    for _ in range(2):
        alone.step()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and is kept for later is not in use
    return resident_bytes() - before - alone.adapter_bytes
