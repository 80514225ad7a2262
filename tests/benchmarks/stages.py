"""What a trunk computes in stages and replicas, over what it computes in one thread.

::

    python tests/benchmarks/stages.py [--layers 8] [--width 768] [--microbatches 24] [--rounds 5]
        [--engines threads ray replicas] [--out FILE]

A trunk of GPT-2's layers with LoRA, microbatches of 2 x 128 tokens, forward and backward, four in
flight; one thread a stage. Sessions are asked directly, so that no wire and no silo takes part of
the processors. One thread of one process takes turns with two stages, threads of one process
(`threads`) or two actors of Ray (`ray`), and with two replicas of one stage, a session on each
(`replicas`). A ratio is that of neighbours in time. What stages add to a
microbatch that is alone, forward and backward, is measured with two layers, one a stage.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from tiny_checkpoint import save_tiny_model
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from flower_split.config.run_config import read_run_config
from flower_split.server.cluster.ray_chain import ray_chain
from flower_split.server.hosting.hosted_run import HostedRun
from flower_split.server.hosting.resolving import resolve_run
from flower_split.transport.messages import BackwardRequest, ForwardRequest

ROWS, TOKENS, IN_FLIGHT = 2, 128, 4
SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of the model."""

    layers: int
    """Of the trunk."""
    width: int


def save_model(folder: Path, size: Size) -> Path:
    """Layers of GPT-2 of that width, without dropout, and a layer at each end for the silo."""
    save_tiny_model(folder, "gpt2")
    config = GPT2Config(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        n_embd=size.width,
        n_head=max(1, size.width // 64),
        n_layer=size.layers + 2,
        n_positions=TOKENS,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def settings(folder: Path, **changes: Any) -> Any:
    """Of a run with this trunk."""
    return read_run_config(
        {
            "model.name": str(folder),
            "split.bottom-layers": 1,
            "split.top-layers": 1,
            "lora.r": 8,
            "train.learning-rate": 1e-3,
            **changes,
        }
    )


@contextmanager
def engine_of(folder: Path, kind: str) -> Iterator[Any]:
    """What computes, of one of the kinds."""
    changes = {
        "one": {},
        "threads": {"trunk.devices": "cpu, cpu"},
        "ray": {"trunk.engine": "ray", "trunk.stages": 2},
        "replicas": {"trunk.engine": "ray", "trunk.replicas": 2},
    }[kind]
    config = settings(folder, **changes)
    resolved = resolve_run(config)
    with ExitStack() as stack:
        engine = None
        if kind in ("ray", "replicas"):
            engine = stack.enter_context(ray_chain(config, resolved))
        yield HostedRun(config, resolved, engine=engine).engine


class Work:
    """A session that is always given something to do."""

    def __init__(self, engine: Any, width: int) -> None:
        self._session = engine.open(engine.describe(), None).result(SECONDS)
        self._hidden = torch.randn(ROWS, TOKENS, width)
        self._grad = torch.randn(ROWS, TOKENS, width) / 100
        self._next = 0

    def compute(self, microbatches: int, in_flight: int = IN_FLIGHT) -> None:
        """Forward and backward of so many, of which so many are under way."""
        asked = deque[tuple[int | None, Any]]()
        first = self._next
        self._next += microbatches
        for number in range(first, first + microbatches):
            while len(asked) >= in_flight:
                self._take(asked)
            asked.append((number, self._forward(number)))
        while asked:
            self._take(asked)

    def close(self) -> None:
        """End it."""
        self._session.close().result(SECONDS)

    def _take(self, asked: deque[tuple[int | None, Any]]) -> None:
        number, answer = asked.popleft()
        answer.result(SECONDS)
        if number is not None:
            request = BackwardRequest(step=0, microbatch=number, grad=self._grad)
            asked.append((None, self._session.submit(request)))

    def _forward(self, number: int) -> Any:
        return self._session.submit(
            ForwardRequest(step=0, microbatch=number, hidden=self._hidden, keep_graph=True)
        )


def seconds_of(works: list[Work], microbatches: int, in_flight: int) -> float:
    """That all of them take for so many each, at once."""
    threads = [
        threading.Thread(target=work.compute, args=(microbatches, in_flight)) for work in works
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def compared(folder: Path, width: int, kind: str, rounds: int, microbatches: int) -> dict[str, Any]:
    """Tokens a second of a kind over those of one thread, in turns."""
    sessions = 2 if kind == "replicas" else 1
    with engine_of(folder, "one") as one, engine_of(folder, kind) as other:
        each = {
            name: [Work(engine, width) for _ in range(sessions)]
            for name, engine in (("one", one), (kind, other))
        }
        # One trunk answers a session's requests one at a time, as it does a silo's.
        flights = {"one": 1, kind: IN_FLIGHT}
        for name, works in each.items():
            seconds_of(works, 2 * IN_FLIGHT, flights[name])
        ratios, base = list[float](), list[float]()
        for number in range(rounds):
            order = ("one", kind) if number % 2 else (kind, "one")
            took = {name: seconds_of(each[name], microbatches, flights[name]) for name in order}
            ratios.append(took["one"] / took[kind])
            base.append(sessions * microbatches * ROWS * TOKENS / took["one"])
            print(f"{kind}: {ratios[-1]:.3f} of {base[-1]:.0f} tokens/s", flush=True)
        for works in each.values():
            for work in works:
                work.close()
    return {
        "kind": kind,
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "one_tokens_per_second": statistics.median(base),
    }


def hop(folder: Path, width: int, kind: str, times: int = 40) -> dict[str, Any]:
    """Milliseconds that stages add to a microbatch that is alone."""
    took: dict[str, list[float]] = {"one": [], kind: []}
    with engine_of(folder, "one") as one, engine_of(folder, kind) as other:
        works = {"one": Work(one, width), kind: Work(other, width)}
        for work in works.values():
            work.compute(5, 1)
        for _ in range(times):
            for name, work in works.items():
                began = time.perf_counter()
                work.compute(1, 1)
                took[name].append(time.perf_counter() - began)
        for work in works.values():
            work.close()
    medians = {name: 1e3 * statistics.median(seconds) for name, seconds in took.items()}
    # Two passes, each over one boundary between stages; on Ray also into and out of the actors.
    return {
        "kind": kind,
        "bytes": ROWS * TOKENS * width * 4,
        "microbatch_ms": medians[kind],
        "one_ms": medians["one"],
        "added_ms": medians[kind] - medians["one"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--microbatches", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=["threads", "ray", "replicas"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(layers=given.layers, width=given.width)
    found: dict[str, Any] = {
        "layers": size.layers,
        "width": size.width,
        "microbatch": [ROWS, TOKENS],
        "in_flight": IN_FLIGHT,
        "rounds": given.rounds,
        "microbatches": given.microbatches,
        "engines": [],
        "hops": [],
    }
    with tempfile.TemporaryDirectory() as path:
        folder = save_model(Path(path) / "model", size)
        for kind in given.engines:
            found["engines"].append(
                compared(folder, size.width, kind, given.rounds, given.microbatches)
            )
        thin = save_model(Path(path) / "thin", Size(layers=2, width=given.width))
        for kind in (kind for kind in given.engines if kind != "replicas"):
            found["hops"].append(hop(thin, given.width, kind))
            print(json.dumps(found["hops"][-1]), flush=True)
    print(json.dumps(found))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
