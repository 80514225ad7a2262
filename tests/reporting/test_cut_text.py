import pytest

from flower_split.reporting.cut_text import layers_at_silos


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ("1", "1")),
        ({"split.bottom-layers": 2, "split.top-layers": 0}, ("2", "0")),
        ({"split.bottom-layers": 2, "split.max-bottom-layers": 4}, ("2 to 4", "1")),
        ({"split.max-top-layers": 3}, ("1", "1 to 3")),
        ({"split.max-top-layers": 1, "split.max-bottom-layers": 0}, ("1", "1")),
        ({"split.bottom-layers": "<b>", "split.max-bottom-layers": None}, ("<b>", "1")),
    ],
)
def test_the_layers_of_silos_are_told_with_their_bounds(settings, said):
    assert layers_at_silos(settings) == said
