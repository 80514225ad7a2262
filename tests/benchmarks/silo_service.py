"""What a silo service saves of a round's cost, against the same deployment without one.

::

    python tests/benchmarks/silo_service.py [--rounds 5] [--turns 2] [--out FILE]

The deployment of `round_cost.py`. Runs with and without services take turns on it, so that whatever
else the machine does meets both; the SuperNodes stay, and without a service their ClientApps do the
messages themselves. One thread a process, and no libraries for quantized weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from federation import Federation, Node, wait_for
from round_cost import PARTS, breakdown, run
from started_processes import python_path

from flower_split.apps.silo_service.socket_folder import SOCKET
from flower_split.reporting import RoundResult, read_result

SILOS = 2


@contextmanager
def services(federation: Federation, folders: Sequence[Path]) -> Iterator[None]:
    """A silo service in each folder, which has taken its place when the block begins."""
    running = []
    try:
        for folder in folders:
            with folder.with_suffix(".log").open("ab") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "flower_split.apps.cli", "silo", "serve", folder],
                        env=federation.environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        for folder in folders:
            wait_for(lambda at=folder: (at / SOCKET).exists(), "the service listens")
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(120.0)


def medians(rounds: Sequence[RoundResult]) -> dict[str, float]:
    """Seconds of a round by part, of which the first round of a run has other ones."""
    parts = [breakdown(one) for one in rounds]
    found = {name: statistics.median(part[name] for part in parts) for name in PARTS}
    return {**found, "round": statistics.median(one.seconds for one in rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    found: dict[str, list[RoundResult]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory(prefix="fss-", dir="/tmp") as path:
        folder = Path(path)
        folders = [folder / f"silo{number}" for number in range(SILOS)]
        nodes = [
            Node(config={"partition-id": i, "num-partitions": SILOS, "service-dir": str(at)})
            for i, at in enumerate(folders)
        ]
        with Federation(folder / "federation", nodes, tls=True) as federation:
            for turn in range(given.turns):
                for name, served in (("without", []), ("with", folders)):
                    output = folder / f"{name}-{turn}"
                    output.mkdir()
                    with services(federation, served):
                        run(federation, output, given.rounds)
                    rounds = read_result(output / "output" / "result.json").rounds
                    found[name] += [one for one in rounds if one.train_counters]
    parts = {name: medians(rounds) for name, rounds in found.items()}
    result = {
        "rounds": len(found["with"]),
        "cores": os.cpu_count(),
        "seconds": parts,
        "ratio": parts["with"]["round"] / parts["without"]["round"],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
