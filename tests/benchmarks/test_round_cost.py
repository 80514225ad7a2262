"""The parts of a round make the whole of it."""

from benchmark_scripts import load_benchmark

from flower_split.reporting import RoundResult

round_cost = load_benchmark("round_cost")


def test_the_parts_of_the_slowest_silo_make_the_round():
    slow = {"seconds": 4.0, "seconds-before": 3.0, "seconds-loading": 1.0}
    slow["seconds-connecting"] = 0.5
    quick = dict.fromkeys(slow, 0.1)
    one = RoundResult(server_round=1, seconds=9.0, train_counters={"a": quick, "b": slow})
    parts = round_cost.breakdown(one)
    assert parts["starting"] == 3.0 and parts["session"] == 2.5 and parts["messages"] == 2.0
    assert sum(parts.values()) == 9.0
    assert "whole round    9.00 s" in round_cost.table([one])
