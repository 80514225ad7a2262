"""A crowd: several silos at one trunk, alone with the trunk or as processes that train."""

import ctypes
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from typing import Any, Self

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


class Crowd:
    """Silos and trunk, a process each with one thread, all on these cores, over gRPC.

    The processes stay for the time of a `with` block.

    Args:
        shape: Of the model and of a step.
        silos: How many there are.
        ways: How the trunk puts requests together, by name; it serves each at its own address.
    """

    def __init__(self, shape: Shape, silos: int, ways: Mapping[str, BatchSettings]) -> None:
        self._shape, self._silos = shape, silos
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._trunk = context.Process(target=_serve, args=(shape, ways, there), daemon=True)
        self._pool = context.Pool(silos, _start_silo, (shape, context.Barrier(silos)))

    def __enter__(self) -> Self:
        self._trunk.start()
        self._addresses: dict[str, str] = self._here.recv()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.terminate()
        self._pool.join()
        self._trunk.kill()
        self._trunk.join()

    def train(self, way: str, steps: int) -> dict[str, float]:
        """All silos' tokens per second, and how their requests waited in the trunk's queue."""
        work = [(self._addresses[way], number, steps) for number in range(self._silos)]
        found = self._pool.starmap_async(_train, work, chunksize=1).get(SECONDS)
        taken = max(end for _, end, _ in found) - min(begin for begin, _, _ in found)
        queues = [queue for _, _, queue in found]
        requests = 2 * steps * self._shape.microbatches
        return {
            "tokens_per_second": self._silos * steps * self._shape.step_tokens / taken,
            "queue_seconds_of_a_request": statistics.mean(q.seconds / requests for q in queues),
            "rows_beside": statistics.mean(q.rows_beside / q.rows for q in queues),
        }


def _serve(shape: Shape, ways: Mapping[str, BatchSettings], pipe: Any) -> None:
    one_thread()
    with ExitStack() as stack:
        addresses = {}
        for way, settings in ways.items():
            model = random_model(shape)
            _, trunk = split_model(model, shape.bottom, shape.top)
            engine = TrunkEngine(trunk, plan=resolve_lora(model, LORA), batching=settings)
            server = stack.enter_context(TrunkServer(engine, health=False))
            addresses[way] = server.address
        pipe.send(addresses)
        pipe.recv()


class _Silo:
    """What a silo's process holds between two calls."""

    def __init__(self, shape: Shape, start: Barrier) -> None:
        self.shape, self.start = shape, start
        model = random_model(shape)
        self.plan = resolve_lora(model, LORA)
        client, _ = split_model(model, shape.bottom, shape.top)
        self.client = wrap(client, self.plan)
        self.client.train()


_HERE: list[_Silo] = []


def _start_silo(shape: Shape, start: Barrier) -> None:
    one_thread()
    _HERE.append(_Silo(shape, start))


def _train(address: str, number: int, steps: int) -> tuple[float, float, Any]:
    silo = _HERE[0]
    spec = session_spec(silo.client, plan=silo.plan, trunk_adapters="federated")
    with GrpcTransport(address, replace(spec, seed=number)) as transport:
        attach_trunk(silo.client, transport)
        optimizer = SplitAdamW(silo.client, lr=1e-4)
        silo.start.wait(SECONDS)  # so that no silo's process takes two calls either
        begin = time.monotonic()
        for _ in range(steps):
            train_step(silo.client, optimizer, random_ids(silo.shape))
        end = time.monotonic()
        return begin, end, transport.finish().queue


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """One optimizer step over all microbatches, ids: (microbatches, rows, tokens)."""
    for batch in ids:
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


class Whole:
    """The uncut PEFT model, with a thread for every core.

    In two processes, of which one keeps freed memory as silos and trunk do. They stay for the time
    of a `with` block.

    Args:
        shape: Of the model and of a step.
    """

    def __init__(self, shape: Shape) -> None:
        context = multiprocessing.get_context("spawn")
        self._tokens = shape.step_tokens
        self._pools = [context.Pool(1, _start_whole, (shape, keep)) for keep in (False, True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pool in self._pools:
            pool.terminate()
            pool.join()

    def train(self, steps: int) -> float:
        """Tokens per second of the faster one."""
        rates = [float(pool.apply(_train_whole, (steps,))) for pool in self._pools]
        return max(rates) * self._tokens


_WHOLE: list[Callable[[], None]] = []
"""An optimizer step of the uncut model in this process."""


def _start_whole(shape: Shape, keep: bool) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if keep:
        keep_freed_memory()
    model = random_model(shape)
    whole = wrap(model, resolve_lora(model, LORA))
    trainable = [p for p in whole.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)
    whole.train()
    ids = random_ids(shape)
    _WHOLE.append(lambda: train_step(whole, optimizer, ids))
    _WHOLE[0]()


def _train_whole(steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        _WHOLE[0]()
    return steps / (time.perf_counter() - start)
