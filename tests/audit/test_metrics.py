"""Metrics count what is right, and a random order of the targets takes it away."""

from audit_texts import texts

from flower_split.audit import metrics
from flower_split.audit.records import identifiers, synthetic_records


def test_what_is_all_right_and_what_is_half_right() -> None:
    given = texts()
    victims = given.victims
    whole = metrics.recovery(victims.ids, given, seed=0)
    assert whole.tokens == metrics.Share(value=1.0, low=1.0, high=1.0)
    assert whole.documents.value == whole.rouge_l.value == whole.worst_decile == 1
    half = victims.ids.clone()
    half[:, ::2] = -1
    found = metrics.recovery(half, given, seed=0)
    assert 0.3 < found.tokens.low < found.tokens.value < found.tokens.high < 0.7
    assert found.documents.value == 0 and 0.3 < found.rouge_l.value < 0.7
    assert found.tokens.value < found.worst_decile < 0.8


def test_a_shift_costs_tokens_and_not_the_subsequence() -> None:
    given = texts()
    moved = given.victims.ids.roll(1, dims=1)
    found = metrics.recovery(moved, given, seed=0)
    assert found.tokens.value < 0.3 < 0.7 < found.rouge_l.value


def test_shuffled_targets_are_found_by_chance() -> None:
    given = texts(200)
    measured = metrics.shuffled(given.victims.ids, given, seed=1)
    assert abs(measured - metrics.chance(given.victims.ids, given)) < 0.03


def test_identifiers_are_planted_and_found_again() -> None:
    rows = synthetic_records(50, seed=3)
    assert rows == synthetic_records(50, seed=3) != synthetic_records(50, seed=4)
    assert len({row["text"] for row in rows}) == 50
    assert all(len(identifiers(row["text"])) == 1 for row in rows)
    assert identifiers("on 12/03/2020 to a.b@c.org, 17 times") == ["12/03/2020", "a.b@c.org"]
