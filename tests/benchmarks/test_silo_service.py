"""The medians of rounds by part, and the stored result."""

import json
from pathlib import Path

from benchmark_scripts import load_benchmark

from flower_split.reporting import RoundResult

silo_service = load_benchmark("silo_service")
STORED = Path(__file__).parent / "results" / "silo_service.json"


def one_round(number, seconds, before):
    cost = {"seconds": 1.0, "seconds-before": before}
    cost |= {"seconds-loading": 0.5, "seconds-connecting": 0.25}
    return RoundResult(server_round=number, seconds=seconds, train_counters={"a": cost})


def test_the_medians_are_those_of_each_part():
    found = silo_service.medians([one_round(1, 9.0, 3.0), one_round(2, 5.0, 1.0)])
    assert found["round"] == 7.0 and found["starting"] == 2.0
    assert (found["loading"], found["connecting"], found["session"]) == (0.5, 0.25, 0.25)


def test_the_stored_result_is_of_this_script():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert set(stored["seconds"]) == {"with", "without"}
    assert all(set(one) == {*silo_service.PARTS, "round"} for one in stored["seconds"].values())
    ratio = stored["seconds"]["with"]["round"] / stored["seconds"]["without"]["round"]
    assert abs(stored["ratio"] - ratio) < 1e-9
