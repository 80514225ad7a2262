"""What a report says, in words that a reader can hold it to."""

from dataclasses import replace

import pytest

from flower_split.reporting import RoundResult, RunResult
from flower_split.reporting.report.content import (
    MOST_FAILURES,
    by_silo,
    headline,
    report_sections,
    state,
)
from flower_split.reporting.report.sections import Bars, Facts, Lines, Prose, Table, Verbatim


def parts(result, title):
    found = [section.parts for section in report_sections(result) if section.title == title]
    return found[0] if found else []


def of(kind, found):
    return [part for part in found if isinstance(part, kind)]


def test_every_silo_has_a_row_against_the_untouched_model_and_against_alone(result):
    (table,) = of(Table, parts(result, "Results by silo"))
    assert table.head == [
        *("silo", "examples", "perplexity before", "after", "change", "alone", "against alone"),
    ]
    assert table.rows[0] == ["0", "12", "20.09", "2.718", "-86.5%", "4.953", "-45.1%"]
    assert [row[0] for row in table.rows] == ["0", "1", "10"]
    (table,) = of(Table, parts(replace(result, alone=()), "Results by silo"))
    assert table.head[-1] == "change"


def test_a_classifier_is_told_by_its_loss(result):
    config = {**result.config, "model.task": "sequence-classification"}
    (table,) = of(Table, by_silo(replace(result, config=config)).parts)
    assert table.rows[0] == ["0", "12", "3", "1", "-66.7%", "1.6", "-37.5%"]


def test_losses_are_drawn_for_the_run_and_for_the_baseline(result):
    held_out, training = of(Lines, parts(result, "Losses"))
    assert held_out.series["10"] == [(0, 4.0), (1, 3.0), (2, 2.0)]
    assert held_out.dashed["0"] == [(1, 2.1), (2, 1.6)]
    assert training.series["0"] == [(1, 2.0), (2, 1.0)]


def test_who_did_not_count_is_listed_with_the_reason(result):
    assert parts(result, "What did not count") == []
    failed = RoundResult(server_round=3, failures={"1": "too late"})
    (table,) = parts(replace(result, rounds=(*result.rounds, failed)), "What did not count")
    assert table.rows == [["3", "1", "too late"]]
    many = RoundResult(server_round=3, failures={str(n): "x" for n in range(MOST_FAILURES + 5)})
    table, more = parts(replace(result, rounds=(many,)), "What did not count")
    assert len(table.rows) == MOST_FAILURES and more.text.startswith("and 5 more")


def test_time_is_divided_without_counting_any_twice(result):
    counters = {
        "seconds": 10.0,
        "seconds-loading": 2.0,
        "seconds-connecting": 1.0,
        "seconds-waiting": 4.0,
        "queue-seconds": 3.0,
    }
    one = replace(result.rounds[1], train_counters={"0": counters})
    # More waits in the queue at once than there were seconds.
    two = replace(result.rounds[2], train_counters={"0": {**counters, "queue-seconds": 9.0}})
    (bars,) = of(Bars, parts(replace(result, rounds=(one, two)), "Where the time went"))
    assert bars.rows["0"] == {
        "loading": 4.0,
        "connecting": 2.0,
        "in the trunk's queue": 7.0,
        "waiting for trunk and network": 1.0,
        "the silo itself": 6.0,
    }


def test_bytes_samples_and_settings(result):
    (bars,) = of(Bars, parts(result, "What crossed the wire"))
    assert sum(bars.rows["0"].values()) == 2_500_000
    before, after = of(Verbatim, parts(result, "Samples"))
    assert (before.title, after.title) == ("before training", "after round 2")
    config = {**result.config, "model.name": "/srv/secret/qwen", "tls.private-key": "/srv/key.pem"}
    told = of(Facts, parts(replace(result, config=config), "How it was trained"))
    assert told[0].rows["base model"] == "qwen"
    assert told[1].rows["lora.r"] == "8" and "tls.private-key" not in told[1].rows


def test_code_that_uses_the_result_is_stock_code(result):
    form = {"template": "{text}", "prompt": "", "separator": ""}
    (code,) = of(Verbatim, parts(replace(result, prompt_format=form), "Use the result"))
    compile(code.text, "report", "exec")
    assert "flower_split" not in code.text and "'m'" in code.text


@pytest.mark.parametrize(
    ("changes", "word", "said"),
    [
        ({}, "completed", ""),
        ({"failure": "too few silos"}, "failed", "ended early: too few silos"),
        ({"state": "running"}, "running", "has not ended, or its process was killed"),
        ({"state": "failed", "failure": "x"}, "failed", "ended early: x"),
    ],
)
def test_the_state_is_told(result, changes, word, said):
    given = replace(result, **changes)
    assert state(given) == word
    warnings = [part.text for part in of(Prose, parts(given, "In short"))]
    assert said in " ".join(warnings) and bool(warnings) == bool(said)


def test_a_run_without_rounds_has_a_report():
    empty = RunResult(rounds=(), failure="nobody came")
    assert headline(empty) == "a model, 0 silos, 0 rounds"
    assert "Results by silo" not in [section.title for section in report_sections(empty)]


def test_rounds_that_are_missing_are_told(result):
    assert headline(result) == "m, 3 silos, 2 rounds"
    config = {**result.config, "num-server-rounds": 5}
    assert headline(replace(result, config=config)) == "m, 3 silos, 2 of 5 rounds"
