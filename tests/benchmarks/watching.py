"""What a step costs more while a run is watched, or while its silos keep a ledger.

::

    python tests/benchmarks/watching.py [--what watched] [--pairs 6] [--steps 40] [--out FILE]

The ready-made ServerApp and two silos in one process, one thread each, on a model of six layers of
256. Runs with it take turns with runs that leave nothing; a ratio is that of a pair's median steps.
Watched is a run with events, results, TensorBoard, and a live page that stays open and whose
metrics are scraped once a second. What a ledger costs is less than two runs differ by, so the time
in which its entries are made is told beside, as a share of the steps.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import httpx
from federation import free_port
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from tiny_checkpoint import save_texts
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flower_split.apps.in_process import RUN_ID, InProcessGrid
from flower_split.client import SplitSession
from flower_split.client.ledger import SessionLedger
from flower_split.transport.grpc import stream

SILOS = 2
TOKENS, BATCH = 128, 4
WARMING = 3
"""Steps of a run that are not counted."""


def save_model(folder: Path) -> Path:
    """A model that is large enough for a step to be one, with the tokenizer of a tiny one."""
    from tiny_checkpoint import save_tiny_model

    save_tiny_model(folder)
    size = len(AutoTokenizer.from_pretrained(folder))
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        vocab_size=size,
        max_position_embeddings=TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def client_app(seconds: list[float]) -> ClientApp:
    """Trains as the ready-made one does, and notes how long each step took."""
    app = ClientApp()

    @app.train()
    def train(message: Any, context: Context) -> Any:
        with SplitSession(message, context) as session:
            for number, microbatches in enumerate(session.train_steps()):
                began = time.perf_counter()
                step = session.accumulate(microbatches)
                session.optimizer.step()
                session.optimizer.zero_grad()
                if number >= WARMING:
                    seconds.append(time.perf_counter() - began)
            return session.reply({"train-loss": step.loss})

    return app


@contextmanager
def reader(address: str) -> Iterator[None]:
    """A page that stays open, and a scraper that asks for the metrics once a second."""
    ends = threading.Event()

    def reads() -> None:
        while not ends.wait(0.2):
            with suppress(httpx.HTTPError), httpx.stream("GET", f"http://{address}/stream") as page:
                for _ in page.iter_bytes():
                    if ends.is_set():
                        return

    def scrapes() -> None:
        while not ends.wait(1.0):
            with suppress(httpx.HTTPError):
                httpx.get(f"http://{address}/metrics")

    threads = [threading.Thread(target=one, daemon=True) for one in (reads, scrapes)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        ends.set()
        for one in threads:
            one.join(20.0)


@contextmanager
def timing_ledgers(spent: list[float]) -> Iterator[None]:
    """Note the seconds in which tensors are digested and entries are written, call by call."""

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - began)

        return timing

    with (
        patch.object(stream, "leaving", timed(stream.leaving)),
        patch.object(SessionLedger, "note_tensors", timed(SessionLedger.note_tensors)),
    ):
        yield


def seconds_of_steps(
    values: dict[str, Any], output: Path | None = None, *, ledger: Path | None = None
) -> list[float]:
    """Of a run's steps; it is watched where it has an output folder."""
    from flower_split.apps.server_app import app as server_app

    seconds = list[float]()
    with ExitStack() as stack:
        if output is not None:
            address = f"127.0.0.1:{free_port()}"
            values = {
                **values,
                "output-dir": str(output),
                "monitor": True,
                "monitor-address": address,
                "tensorboard": True,
            }
            stack.enter_context(reader(address))
        node = {} if ledger is None else {"ledger-dir": str(ledger)}
        app = client_app(seconds)
        grid = InProcessGrid(app, SILOS, run_config=values, node_config=node)
        server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), dict(values)))
    return seconds


def run_config(folder: Path, steps: int) -> dict[str, Any]:
    """Of a run of one round."""
    return {
        "model.name": str(save_model(folder / "model")),
        "data.path": str(save_texts(folder / "texts.jsonl", 400)),
        "data.packing": True,
        "split.bottom-layers": 1,
        "split.top-layers": 1,
        "train.batch-size": BATCH,
        "train.max-length": TOKENS,
        "train.local-steps": steps + WARMING,
        "lora.r": 8,
        "num-server-rounds": 1,
        "evaluate-initial": False,
        "strategy.min-nodes": SILOS,
        "strategy.fraction-evaluate": 0.0,
        "trunk.host": "127.0.0.1",
        "trunk.port": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--what", choices=("watched", "ledger"), default="watched")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    ratios, steps, shares = list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        values = run_config(folder, given.steps)
        for number in range(given.pairs):
            medians = dict[bool, float]()
            left = folder / f"left{number}"
            for with_it in (False, True) if number % 2 else (True, False):
                output = left if with_it and given.what == "watched" else None
                ledger = left if with_it and given.what == "ledger" else None
                spent = list[float]()
                with timing_ledgers(spent):
                    seconds = seconds_of_steps(values, output, ledger=ledger)
                medians[with_it] = statistics.median(seconds)
                if ledger is not None:
                    steps_made = SILOS * (given.steps + WARMING)
                    shares.append(sum(spent) / steps_made / medians[with_it])
            ratios.append(medians[True] / medians[False])
            steps.append(medians[False])
            print(f"{ratios[-1]:.4f} of {1e3 * steps[-1]:.1f} ms", flush=True)
    found = {
        "what": given.what,
        "pairs": given.pairs,
        "steps": given.steps,
        "step_ms": 1e3 * statistics.median(steps),
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        **({"share": statistics.median(shares)} if shares else {}),
    }
    print(json.dumps(found))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
