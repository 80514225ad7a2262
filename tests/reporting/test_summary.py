"""The printed summary says before, after, alone, cost, failures and samples."""

import io
from dataclasses import replace

from rich.console import Console

from flower_split.reporting import RoundResult, RunResult, print_summary


def printed(result: RunResult) -> str:
    text = io.StringIO()
    print_summary(result, Console(file=text, width=120, no_color=True))
    return text.getvalue()


def row(text: str, silo: str) -> list[str]:
    found = [line for line in text.splitlines() if line.strip("│ ").startswith(f"{silo} ")]
    assert len(found) == 1
    return [cell.strip() for cell in found[0].strip("│").split("│")]


def test_a_row_for_every_silo(result: RunResult) -> None:
    text = printed(result)
    assert row(text, "0") == ["0", "20.09", "2.72", "-86%", "4.95", "2.5 MB", "37.5%"]
    assert row(text, "10")[:3] == ["10", "54.60", "7.39"]


def test_samples_are_printed_as_they_are(result: RunResult) -> None:
    text = printed(result)
    assert "Return the [bold]" in text
    assert text.index("split, before") < text.index("split, after")
    assert "round 2" in printed(replace(result, samples={2: "Only one"}))


def test_what_is_unknown_is_a_dash() -> None:
    failed = RoundResult(server_round=1, failures={"3": "the trunk is gone"})
    known = RoundResult(server_round=0, evaluate={"2": {"eval-loss": 20.0}})
    text = printed(RunResult(rounds=(known, failed)))
    assert row(text, "2") == ["2", "4.85e+08", "-", "-"]
    assert row(text, "3") == ["3", "-", "-", "-"]
    assert "round 1: silo 3 did not count: the trunk is gone" in text


def test_a_reason_that_lasts_is_told_once() -> None:
    rounds = tuple(
        RoundResult(server_round=n, failures={"3": "no data"} if n != 2 else {"3": "gone"})
        for n in range(5)
    )
    text = printed(RunResult(rounds=rounds))
    assert "rounds 0 to 1, 3 to 4: silo 3 did not count: no data" in text
    assert "round 2: silo 3 did not count: gone" in text and text.count("did not count") == 2


def test_without_an_evaluation_before_the_first_round_nothing_is_called_before() -> None:
    rounds = tuple(
        RoundResult(server_round=n, evaluate={"2": {"eval-loss": 3.0 - n}}) for n in (1, 2)
    )
    assert row(printed(RunResult(rounds=rounds)), "2") == ["2", "-", "2.72", "-"]
    assert row(printed(RunResult(rounds=rounds[:1])), "2") == ["2", "-", "7.39", "-"]


def test_an_early_end_is_said(result: RunResult) -> None:
    assert "ended early" not in printed(result)
    text = printed(replace(result, failure="round 2: nobody answered"))
    assert "the run ended early: round 2: nobody answered" in text


def test_a_loss_that_exploded_does_not_break_the_summary() -> None:
    rounds = [
        RoundResult(server_round=number, evaluate={"0": {"eval-loss": loss}})
        for number, loss in enumerate((1.0, 5000.0))
    ]
    assert row(printed(RunResult(rounds=rounds)), "0") == ["0", "2.72", "5.54e+34", "x5.54e+34"]


def test_a_run_that_has_not_ended_says_so(result: RunResult) -> None:
    assert "goes on, or was killed" in printed(replace(result, state="running"))
    assert "goes on" not in printed(replace(result, state="completed"))
