"""The memory in which a silo reads a large file, at a small size."""

from pathlib import Path

import pytest
from benchmark_scripts import load_benchmark

data_memory = load_benchmark("data_memory")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "kind", ["jsonl", "csv", pytest.param("parquet", marks=pytest.mark.exhaustive)]
)
def test_rows_stay_on_the_disk_and_a_token_takes_little(tmp_path: Path, kind: str) -> None:
    sizes = (1000, 40_000)
    found = []
    for rows in sizes:
        folder = tmp_path / str(rows)
        folder.mkdir()
        path = data_memory.write(folder, rows, kind)
        found.append(data_memory.measure(path, folder / "cache"))
    small, large = found
    assert (small.rows, large.rows) == sizes
    more = large.rows - small.rows
    once = 40e6 if kind == "parquet" else 8e6  # Arrow's own, while it writes the cache
    assert large.own - small.own < more * 500 + once  # of the 500 are 130 tokens
