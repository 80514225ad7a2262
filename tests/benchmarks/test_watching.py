"""Runs that are watched and runs that are not are timed alike."""

import pytest
from benchmark_scripts import load_benchmark

watching = load_benchmark("watching")


@pytest.mark.exhaustive
def test_both_kinds_of_runs_are_timed(tmp_path):
    pytest.importorskip("uvicorn")
    values = watching.run_config(tmp_path, steps=2)
    output = tmp_path / "output"
    for folder in (None, output):
        seconds = watching.seconds_of_steps(values, folder)
        assert len(seconds) == 2 * watching.SILOS and min(seconds) > 0
    spent = list[float]()
    with watching.timing_ledgers(spent):
        seconds = watching.seconds_of_steps(values, ledger=tmp_path / "ledger")
    assert len(seconds) == 2 * watching.SILOS and sum(spent) > 0
    assert len(list((tmp_path / "ledger").iterdir())) == watching.SILOS
    assert (output / "events.jsonl").stat().st_size > 0
    assert any(path.name.startswith("events.out") for path in output.rglob("*"))
