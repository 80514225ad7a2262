"""Quiet turns are kept, and waiting for them ends."""

from dataclasses import dataclass

from throughput.turns import quiet_turns


@dataclass
class Taken:
    number: int
    others: float


def taken(*shares):
    turns = [Taken(number, share) for number, share in enumerate(shares)]
    left = iter(turns)
    return lambda: next(left)


def numbers(turns):
    return [turn.number for turn in turns]


def test_the_first_turn_warms_up_and_noisy_ones_are_repeated():
    assert numbers(quiet_turns(taken(0, 0.01, 0.9, 0.02), 2, patience=60)) == [1, 3]


def test_without_patience_the_quietest_are_taken():
    assert numbers(quiet_turns(taken(0, 0.9, 0.5, 0.7), 3, patience=0)) == [2, 3, 1]
