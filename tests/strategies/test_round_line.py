"""A round in one line: four digits, who counted, who did not, how long."""

from dataclasses import replace

from flwr.app import MetricRecord

from flower_split.strategies import NodeRecord, SplitResult
from flower_split.strategies.round_line import round_line


def record(purpose: str, server_round: int, silo: str, failure: str = "") -> NodeRecord:
    return NodeRecord(
        server_round=server_round, purpose=purpose, node_id=7, silo=silo, failure=failure
    )


def result() -> SplitResult:
    made = SplitResult()
    made.history += [
        record("evaluate", 0, "10"),
        record("evaluate", 0, "2"),
        record("train", 1, "2"),
        record("train", 1, "", "gone"),
    ]
    made.train_metrics_clientapp[1] = MetricRecord({"train-loss": 4.0771234, "train-tokens": 9})
    made.evaluate_metrics_clientapp[0] = MetricRecord({"eval-loss": 4.46212, "perplexity": 90.0})
    made.evaluate_metrics_clientapp[1] = MetricRecord({"eval-loss": 4.1, "accuracy": 0.24817})
    made.seconds.update({0: 25.94, 1: 200.0})
    return made


def test_the_line_before_training() -> None:
    assert round_line(result(), 0, 5) == "before training: eval-loss 4.462; silos 2, 10; 25.9 s"


def test_the_line_of_a_round() -> None:
    assert round_line(result(), 1, 5) == (
        "round 1 of 5: train-loss 4.077, eval-loss 4.1, accuracy 0.2482; silo 2; "
        "1 of 2 did not count; 3 min 20 s"
    )


def test_many_silos_are_counted() -> None:
    many = result()
    many.history = [replace(record("train", 1, str(n)), node_id=n) for n in range(13)]
    assert "; 13 silos; " in round_line(many, 1, 5)
    assert "round 2 of 5: no silo; " in round_line(many, 2, 5)
