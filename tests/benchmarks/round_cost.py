"""Where the time of a round goes in a real deployment, beside the training itself.

::

    python tests/benchmarks/round_cost.py [--rounds 5]

A SuperLink with TLS and two authenticated SuperNodes on this machine; a tiny model and one short
epoch, so that nearly everything is cost. Every message starts a process at each silo.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from federation import COMPLETED, Federation, Node, Run, write_app
from tiny_checkpoint import save_texts, save_tiny_model

from flower_split.reporting import RoundResult, read_result

PARTS = ("starting", "loading", "connecting", "session", "messages")


def breakdown(one: RoundResult) -> dict[str, float]:
    """Seconds of a round by part, for its slowest silo; together with `messages`, all of it."""
    slowest: Mapping[str, float] = max(
        one.train_counters.values(), key=lambda held: held["seconds-before"] + held["seconds"]
    )
    before, whole = slowest["seconds-before"], slowest["seconds"]
    loading, connecting = slowest["seconds-loading"], slowest["seconds-connecting"]
    return {
        "starting": before,
        "loading": loading,
        "connecting": connecting,
        "session": whole - loading - connecting,
        "messages": one.seconds - before - whole,
    }


def table(rounds: Sequence[RoundResult]) -> str:
    """Medians over the rounds, in seconds."""
    parts = [breakdown(one) for one in rounds if one.train_counters]
    rows = {name: statistics.median(part[name] for part in parts) for name in PARTS}
    rows["whole round"] = statistics.median(one.seconds for one in rounds if one.train_counters)
    return "\n".join(f"{name:12} {seconds:6.2f} s" for name, seconds in rows.items())


def run(federation: Federation, folder: Path, rounds: int) -> Run:
    """A run whose model, text and `output` are in `folder`, empty before; it completed.

    Raises:
        RuntimeError: it did not; with the logs of the federation.
    """
    config = {
        "model.name": str(save_tiny_model(folder / "model")),
        "data.path": str(save_texts(folder / "texts.jsonl")),
        "data.eval-fraction": 0.25,
        "train.batch-size": 3,
        "train.max-length": 16,
        "lora.r": 2,
        "num-server-rounds": rounds,
        "evaluate-initial": False,
        "strategy.fraction-evaluate": 0.0,
        "output-dir": str(folder / "output"),
    }
    ended = federation.run(write_app(folder / "app", config))
    if ended.status != COMPLETED:
        raise RuntimeError(f"the run ended as {ended}:\n{federation.logs()}")
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    nodes = [Node(config={"partition-id": i, "num-partitions": 2}) for i in range(2)]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        with Federation(folder / "federation", nodes, tls=True) as federation:
            run(federation, folder, rounds)
        print(table(read_result(folder / "output" / "result.json").rounds))


if __name__ == "__main__":
    main()
