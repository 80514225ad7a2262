"""A crowd: several silos at one trunk, alone with the trunk or as processes that train."""

import ctypes
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch import Tensor

from flower_split import (
    GrpcTransport,
    SplitAdamW,
    TrunkEngine,
    TrunkServer,
    attach_trunk,
    session_spec,
    split_model,
)
from flower_split.adapters import resolve_lora, wrap
from flower_split.config.sections import LoraSettings
from flower_split.devices import keep_freed_memory
from flower_split.reporting.machine import resident_bytes
from flower_split.server.batch_settings import BatchSettings
from flower_split.server.session import TrunkSession
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest
from throughput.shapes import Shape, random_ids, random_model

LORA = LoraSettings(r=8)
# Silos that compute on these same cores come within tens of milliseconds of each other.
BATCHED = BatchSettings(batching=True, gather_ms=20.0)
SERIAL = BatchSettings()
SECONDS = 600.0
"""After which a crowd that does not come back is given up."""


class TrunkAlone:
    """A trunk whose silos are elsewhere: each sends its next request as soon as it is answered.

    Args:
        shape: Of the model and of a microbatch.
        silos: How many there are.
        settings: How the trunk puts their requests together.
    """

    def __init__(self, shape: Shape, silos: int, settings: BatchSettings) -> None:
        model = random_model(shape)
        _, trunk = split_model(model, shape.bottom, shape.top)
        self._engine = TrunkEngine(trunk, plan=resolve_lora(model, LORA), batching=settings)
        self._sessions = [self._engine.open(self._engine.describe(), None) for _ in range(silos)]
        generator = torch.Generator().manual_seed(0)
        size = (shape.rows, shape.tokens, shape.hidden)
        self._h1 = [torch.randn(size, generator=generator) for _ in self._sessions]
        self._step = 0
        self.tokens = silos * shape.rows * shape.tokens
        """Of one step."""

    def step(self) -> list[float]:
        """One microbatch and optimizer step of every silo; seconds until each answer."""
        step, self._step = self._step, self._step + 1
        h2s, waits = self._ask(
            [
                ForwardRequest(step=step, microbatch=step, hidden=h1, keep_graph=True)
                for h1 in self._h1
            ]
        )
        _, more = self._ask([BackwardRequest(step=step, microbatch=step, grad=h2) for h2 in h2s])
        for session in self._sessions:
            session.step(StepRequest(step=step, learning_rate=1e-4))
        return waits + more

    def close(self) -> None:
        """End all sessions."""
        for session in self._sessions:
            session.close()

    @property
    def adapter_bytes(self) -> int:
        """Of all silos' adapters, each with its gradients and two moments."""
        return sum(4 * t.nbytes for t in self._engine.shared_state().values()) * len(self._sessions)

    def _ask(
        self, requests: Sequence[ForwardRequest] | Sequence[BackwardRequest]
    ) -> tuple[list[Tensor], list[float]]:
        start = time.perf_counter()
        ends: dict[int, float] = {}
        futures: list[Future[Any]] = []
        for number, (session, request) in enumerate(zip(self._sessions, requests, strict=True)):
            future = session.submit(request)
            future.add_done_callback(
                lambda _, number=number: ends.__setitem__(number, time.perf_counter() - start)
            )
            futures.append(future)
        first: TrunkSession = self._sessions[0]
        while not all(future.done() for future in futures):
            first.work()
        return [future.result() for future in futures], list(ends.values())


def trunk_memory(shape: Shape, silos: int) -> float:
    """Bytes of a trunk that has served `silos`, without adapters, and with nothing in flight."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_trunk_memory, (shape, silos)))


def one_thread() -> None:
    """Make this process one silo's, or the trunk's."""
    torch.set_num_threads(1)
    keep_freed_memory()


def _trunk_memory(shape: Shape, silos: int) -> int:
    one_thread()
    before = resident_bytes()
    alone = TrunkAlone(shape, silos, BATCHED)
    for _ in range(2):
        alone.step()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and is kept for later is not in use
    return resident_bytes() - before - alone.adapter_bytes


def train_together(shape: Shape, silos: int, steps: int, settings: BatchSettings) -> dict[str, Any]:
    """Silos and trunk, a process each with one thread, all on these cores, over gRPC.

    Returns their tokens per second, and how they waited in the trunk's queue.
    """
    context = multiprocessing.get_context("spawn")
    start: Barrier = context.Barrier(silos)
    here, there = context.Pipe()
    trunk = context.Process(target=_serve, args=(shape, settings, there), daemon=True)
    trunk.start()
    try:
        address = here.recv()
        with context.Pool(silos, _keep_barrier, (start,)) as pool:
            found = pool.starmap_async(
                _train, [(shape, address, number, steps) for number in range(silos)], chunksize=1
            ).get(SECONDS)
        here.send(None)
        trunk.join(20.0)
    finally:
        trunk.kill()
    taken = max(end for _, end, _ in found) - min(begin for begin, _, _ in found)
    queues = [queue for _, _, queue in found]
    requests = 2 * (steps + 1) * shape.microbatches
    return {
        "tokens_per_second": silos * steps * shape.step_tokens / taken,
        "queue_seconds_of_a_request": statistics.mean(q.seconds / requests for q in queues),
        "rows_beside": statistics.mean(q.rows_beside / q.rows for q in queues),
    }


def _serve(shape: Shape, settings: BatchSettings, pipe: Any) -> None:
    one_thread()
    model = random_model(shape)
    _, trunk = split_model(model, shape.bottom, shape.top)
    engine = TrunkEngine(trunk, plan=resolve_lora(model, LORA), batching=settings)
    del model
    with TrunkServer(engine, health=False) as server:
        pipe.send(server.address)
        pipe.recv()


_START: list[Barrier] = []


def _keep_barrier(start: Barrier) -> None:
    _START.append(start)


def _train(shape: Shape, address: str, number: int, steps: int) -> tuple[float, float, Any]:
    one_thread()
    model = random_model(shape)
    plan = resolve_lora(model, LORA)
    client, _ = split_model(model, shape.bottom, shape.top)
    client = wrap(client, plan)
    del model
    spec = replace(session_spec(client, plan=plan, trunk_adapters="federated"), seed=number)
    with GrpcTransport(address, spec) as transport:
        attach_trunk(client, transport)
        optimizer = SplitAdamW(client, lr=1e-4)
        client.train()
        begin = 0.0
        for step in range(steps + 1):
            if step == 1:  # the first one warms up
                _START[0].wait(SECONDS)
                begin = time.monotonic()
            train_step(client, optimizer, random_ids(shape))
        end = time.monotonic()
        return begin, end, transport.finish().queue


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """One optimizer step over all microbatches, ids: (microbatches, rows, tokens)."""
    for batch in ids:
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def train_whole(shape: Shape, steps: int) -> float:
    """Tokens per second of the uncut PEFT model, in a process with a thread for every core.

    The more of two processes, of which one keeps freed memory as silos and trunk do.
    """
    rates = []
    for keep in (False, True):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rates.append(float(pool.apply(_train_whole, (shape, steps, keep))))
    return max(rates)


def _train_whole(shape: Shape, steps: int, keep: bool) -> float:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if keep:
        keep_freed_memory()
    model = random_model(shape)
    whole = wrap(model, resolve_lora(model, LORA))
    trainable = [p for p in whole.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)
    whole.train()
    ids = random_ids(shape)
    train_step(whole, optimizer, ids)
    start = time.perf_counter()
    for _ in range(steps):
        train_step(whole, optimizer, ids)
    return steps * ids.numel() / (time.perf_counter() - start)
