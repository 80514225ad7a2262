"""The cut points partition the layers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_split.errors import CutError
from flower_split.segments import Cuts


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 60))
def test_ranges_partition_the_layers_or_the_cuts_are_refused(k: int, m: int, n: int) -> None:
    if k + m >= n:
        with pytest.raises(CutError, match=f"at most {n - 1}"):
            Cuts(bottom_layers=k, top_layers=m, num_layers=n)
        return
    cuts = Cuts(bottom_layers=k, top_layers=m, num_layers=n)
    assert [*cuts.bottom_range, *cuts.trunk_range, *cuts.top_range] == list(range(n))
    assert (len(cuts.bottom_range), len(cuts.top_range)) == (k, m)


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, None])
@pytest.mark.parametrize("name", ["bottom_layers", "top_layers"])
def test_a_count_that_is_no_count_is_named(name: str, value: object) -> None:
    counts = {"bottom_layers": 1, "top_layers": 1, "num_layers": 6, name: value}
    with pytest.raises(CutError, match=f"{name} must be an integer"):
        Cuts(**counts)  # type: ignore[arg-type]
