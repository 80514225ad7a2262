"""Peak of the memory in which a silo reads, partitions and tokenises a large file, in MB.

::

    python tests/benchmarks/data_memory.py [--rows 1000000] [--format jsonl] [--silos 1]

The file has texts of about 20 tokens and is written first; what counts is what a process of its own
needs beyond the same with a small file. `datasets` maps its tables into memory: what of them is in
memory the system can take back, and is told apart (RssFile).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FORMATS = ("jsonl", "csv", "parquet")
WORDS = "returns the sum of all values along a given axis of this array or raises an error if it"
BASE = "flower_split.quickstart:base"

_SCRIPT = """
import json, re, sys, time
from flower_split.config.sections import DataConfig
from flower_split.data import load_silo
from flower_split.segments import load_tokenizer

path, base, silos = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = load_tokenizer(base)
began = time.monotonic()
silo = load_silo(
    DataConfig(path=path), tokenizer, partition_id=0, num_partitions=silos, max_length=64, seed=0
)
status = open("/proc/self/status").read()
found = {name: int(re.search(name + r":\\s+(\\d+)", status)[1]) * 1024 for name in
         ("VmHWM", "RssAnon", "RssFile")}
found["tokens"] = silo.summary.train.tokens + silo.summary.held_out.tokens
found["rows"] = silo.summary.rows
found["seconds"] = time.monotonic() - began
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one process, bytes."""

    peak: int
    """The most that was resident, mapped files included."""
    own: int
    """Resident at the end, mapped files aside."""
    mapped: int
    """Of mapped files, at the end."""
    rows: int
    tokens: int
    seconds: float


def write(folder: Path, rows: int, kind: str) -> Path:
    """A file of `rows` examples."""
    path = folder / f"silo.{kind}"
    if kind == "parquet":
        from pyarrow import parquet, table

        texts = [f"{number} {WORDS}" for number in range(rows)]
        parquet.write_table(table({"text": texts}), path)
        return path
    with path.open("w", encoding="utf-8") as file:
        if kind == "csv":
            file.write("text\n")
        for number in range(rows):
            text = f"{number} {WORDS}"
            file.write((json.dumps({"text": text}) if kind == "jsonl" else text) + "\n")
    return path


def measure(path: Path, cache: Path, silos: int = 1) -> Memory:
    """What a process needs to read `path`."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(path), BASE, str(silos)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_DATASETS_CACHE": str(cache)},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return Memory(
        peak=found["VmHWM"],
        own=found["RssAnon"],
        mapped=found["RssFile"],
        rows=found["rows"],
        tokens=found["tokens"],
        seconds=found["seconds"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=FORMATS, default="jsonl")
    parser.add_argument("--silos", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small").mkdir()
        small = measure(write(folder / "small", 1000, asked.format), folder / "a", asked.silos)
        path = write(folder, asked.rows, asked.format)
        large = measure(path, folder / "b", asked.silos)
        size = path.stat().st_size
    print(f"{large.rows} rows, {size / 1e6:.0f} MB, {large.tokens} tokens, {large.seconds:.0f} s")
    print(f"peak beyond that of 1000 rows: {(large.peak - small.peak) / 1e6:.0f} MB")
    print(f"of its own at the end:         {(large.own - small.own) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
