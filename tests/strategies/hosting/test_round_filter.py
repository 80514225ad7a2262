"""The filter's arithmetic: bounds by the median, and weights capped to a share."""

import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_split.strategies.hosting.round_filter import FEWEST, RoundFilter, capped
from flower_split.strategies.hosting.update_norms import CONTROL_CHANGE, UPDATE

weights = st.dictionaries(
    st.integers(0, 9),
    st.one_of(st.integers(1, 10**15), st.floats(1e-3, 1e15)),
    min_size=1,
    max_size=10,
)
shares = st.one_of(st.integers(1, 100).map(lambda n: n / 100), st.floats(1e-6, 1.0))
norms = st.dictionaries(st.integers(0, 9), st.floats(0.0, 1e30), min_size=1, max_size=10)


def lowered(given_weights, share):
    return {**given_weights, **capped(given_weights, share)}


@given(weights, shares)
def test_no_weight_has_more_than_its_share_of_the_result(given_weights, share):
    result = {node: Fraction(w) for node, w in lowered(given_weights, share).items()}
    most = max(Fraction(str(share)), Fraction(1, len(result)))
    assert max(result.values()) <= most * sum(result.values()) * (1 + Fraction(1, 10**12))


@given(weights, shares)
def test_a_cap_lowers_the_largest_to_one_weight_and_leaves_the_others(given_weights, share):
    changed = capped(given_weights, share)
    assert len(set(changed.values())) <= 1
    for node, weight in changed.items():
        assert 0 < weight < given_weights[node] * (1 + 1e-12)
        others = [w for other, w in given_weights.items() if other not in changed]
        assert all(other <= weight * (1 + 1e-12) for other in others)


@given(weights, shares)
def test_the_cap_is_the_largest_that_keeps_the_share(given_weights, share):
    """A cap of a millionth more would let its weights have more than the share."""
    changed = capped(given_weights, share)
    if not changed:
        return
    limit = Fraction(next(iter(changed.values()))) * (1 + Fraction(1, 10**6))
    more = [min(Fraction(w), limit) for w in given_weights.values()]
    most = max(Fraction(str(share)), Fraction(1, len(more)))
    assert max(more) > most * sum(more) or max(more) == max(map(Fraction, given_weights.values()))


@pytest.mark.medium
@given(weights, shares, st.randoms())
def test_a_cap_depends_on_no_order(given_weights, share, random):
    shuffled = list(given_weights.items())
    random.shuffle(shuffled)
    assert capped(dict(shuffled), share) == capped(given_weights, share)


@pytest.mark.parametrize(
    ("told", "share", "counted"),
    [
        ([10, 20, 30], 0.5, [10, 20, 30]),
        ([10, 20, 31], 0.5, [10, 20, 30]),
        ([10, 20, 1e15], 0.5, [10, 20, 30]),
        ([1, 1e6, 1e6], 0.5, [1, 1e6, 1e6]),
        ([1, 1e6, 1e6], 0.4, [1, 2, 2]),
        ([1, 2, 3, 4], 0.25, [1, 1, 1, 1]),
        ([1, 2, 3, 4], 0.01, [1, 1, 1, 1]),
        ([3, 1e6], 0.5, [3, 3]),
        ([7], 0.1, [7]),
        ([1, 1e15], 1.0, [1, 1e15]),
    ],
)
def test_caps_by_hand(told, share, counted):
    assert list(lowered(dict(enumerate(told)), share).values()) == counted


def test_no_weights_have_no_cap():
    assert capped({}, 0.5) == {}


@given(norms, st.floats(1.0, 1e6))
def test_exactly_what_is_beyond_the_median_s_multiple_is_outlying(values, factor):
    found = RoundFilter(mode="refuse", norm=factor).outlying(
        {n: {UPDATE: v} for n, v in values.items()}
    )
    median = statistics.median(values.values())
    if len(values) < FEWEST or median == 0:
        assert found == {}
    else:
        assert set(found) == {node for node, value in values.items() if value > factor * median}
    assert len(found) <= len(values) / 2


def test_an_outlier_is_told_with_its_figures():
    held = {node: {UPDATE: value} for node, value in enumerate([0.5, 0.5, 500.0])}
    (told,) = RoundFilter(mode="refuse").outlying(held).values()
    assert "the norm of its update is 500, 1000 times the round's median 0.5" in told
    assert "strategy.filter-norm is 10" in told


def test_each_kind_of_norm_has_a_median_of_its_own():
    held = {node: {UPDATE: 1000.0, CONTROL_CHANGE: 0.1} for node in range(3)}
    assert RoundFilter(mode="refuse").outlying(held) == {}
    held[1][CONTROL_CHANGE] = 2.0
    (told,) = RoundFilter(mode="refuse").outlying(held).values()
    assert "the change of its control variates is 2, 20 times" in told


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 1e6], "there are 2, and their median is 500000"),
        ([0.0, 0.0, 1e6], "there are 3, and their median is 0"),
    ],
)
def test_what_cannot_be_compared_is_logged(values, said, caplog):
    held = {node: {UPDATE: value} for node, value in enumerate(values)}
    assert RoundFilter(mode="refuse").outlying(held) == {}
    assert said in caplog.text
