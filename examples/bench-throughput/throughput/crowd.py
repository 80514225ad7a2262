"""A crowd: several silos and their trunk, and the uncut model, as processes that train."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
from flower_split.server.compute.queue import BatchSettings
from throughput.process import cores, processes, set_up
from throughput.shapes import Shape, random_ids, random_model
from throughput.trunk_alone import LORA, SECONDS


class Crowd:
    """Silos and trunk, a process each with one thread, all on these cores, over gRPC.

    The processes stay for the time of a `with` block.

    Args:
        shape: Of the model and of a step.
        silos: How many there are.
        ways: How the trunk puts requests together, by name; it serves each at its own address.
    """

    def __init__(self, shape: Shape, silos: int, ways: Mapping[str, BatchSettings]) -> None:
        self._shape, self._silos, self._ways = shape, silos, ways

    def __enter__(self) -> Self:
        context = processes()
        self._here, there = context.Pipe()
        with ExitStack() as stack:
            trunk = context.Process(
                target=_serve, args=(self._shape, self._ways, there), daemon=True
            )
            trunk.start()
            stack.callback(trunk.join)
            stack.callback(trunk.kill)
            there.close()  # so that a trunk that dies is noticed
            barrier = context.Barrier(self._silos)
            self._pool = stack.enter_context(
                context.Pool(self._silos, _start_silo, (self._shape, barrier))
            )
            self._addresses: dict[str, str] = self._answer()
            self._processes = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._processes.close()

    def train(self, way: str, steps: int) -> dict[str, float]:
        """All silos' tokens per second, how busy the cores were, and how requests waited."""
        work = [(self._addresses[way], number, steps) for number in range(self._silos)]
        before = self._trunk_used()
        found = self._pool.starmap_async(_train, work, chunksize=1).get(SECONDS)
        trunk_used = self._trunk_used() - before
        taken = max(one.end for one in found) - min(one.begin for one in found)
        used = trunk_used + sum(one.used for one in found)
        queues = [one.queue for one in found]
        requests = 2 * steps * self._shape.microbatches
        return {
            "tokens_per_second": self._silos * steps * self._shape.step_tokens / taken,
            "share_of_the_cores": used / (cores() * taken),
            "the_trunks_share_of_that": trunk_used / used,
            "queue_seconds_of_a_request": statistics.mean(q.seconds / requests for q in queues),
            "rows_beside": statistics.mean(q.rows_beside / q.rows for q in queues),
        }

    def _trunk_used(self) -> float:
        """Processor seconds of the trunk so far."""
        self._here.send(True)
        return float(self._answer())

    def _answer(self) -> Any:
        if not self._here.poll(SECONDS):
            raise TimeoutError(f"the trunk's process did not answer in {SECONDS:g} s")
        return self._here.recv()


def _serve(shape: Shape, ways: Mapping[str, BatchSettings], pipe: Any) -> None:
    set_up(threads=1)
    with ExitStack() as stack:
        addresses = {}
        for way, settings in ways.items():
            model = random_model(shape)
            _, trunk = split_model(model, shape.bottom, shape.top)
            engine = TrunkEngine(trunk, plan=resolve_lora(model, LORA), batching=settings)
            server = stack.enter_context(TrunkServer(engine, health=False))
            addresses[way] = server.address
        pipe.send(addresses)
        while pipe.recv():
            pipe.send(time.process_time())


class _Silo:
    """What a silo's process holds between two calls."""

    def __init__(self, shape: Shape, start: Barrier) -> None:
        self.start = start
        model = random_model(shape)
        self.plan = resolve_lora(model, LORA)
        client, _ = split_model(model, shape.bottom, shape.top)
        self.client = wrap(client, self.plan)
        self.client.train()
        self.ids = random_ids(shape)


_HERE: list[_Silo] = []


def _start_silo(shape: Shape, start: Barrier) -> None:
    set_up(threads=1)
    _HERE.append(_Silo(shape, start))


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """When a silo trained, on one clock, and what it used and waited for."""

    begin: float
    end: float
    used: float
    """Processor seconds."""
    queue: Any


def _train(address: str, number: int, steps: int) -> _Trained:
    silo = _HERE[0]
    spec = session_spec(silo.client, plan=silo.plan, trunk_adapters="federated")
    with GrpcTransport(address, replace(spec, seed=number)) as transport:
        attach_trunk(silo.client, transport)
        optimizer = SplitAdamW(silo.client, lr=1e-4)
        silo.start.wait(SECONDS)  # so that no silo's process takes two calls either
        begin, before = time.monotonic(), time.process_time()
        for _ in range(steps):
            train_step(silo.client, optimizer, silo.ids)
        used, end = time.process_time() - before, time.monotonic()
        return _Trained(begin=begin, end=end, used=used, queue=transport.finish().queue)


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    """One optimizer step over all microbatches, ids: (microbatches, rows, tokens)."""
    for batch in ids:
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


class Whole:
    """The uncut PEFT model, with a thread for every core.

    Its process stays for the time of a `with` block.

    Args:
        shape: Of the model and of a step.
        keep: Keep freed memory, as silos and trunk do.
    """

    def __init__(self, shape: Shape, *, keep: bool) -> None:
        self._shape, self._keep = shape, keep

    def __enter__(self) -> Self:
        context = processes()
        self._pool = context.Pool(1, _start_whole, (self._shape, self._keep))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def train(self, steps: int) -> float:
        """Tokens per second."""
        rate = self._pool.apply_async(_train_whole, (steps,)).get(SECONDS)
        return self._shape.step_tokens * float(rate)


_WHOLE: list[Callable[[], None]] = []
"""An optimizer step of the uncut model in this process."""


def _start_whole(shape: Shape, keep: bool) -> None:
    set_up(cores(), keep=keep)
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
