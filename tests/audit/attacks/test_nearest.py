"""The nearest neighbour finds embeddings, and nothing in noise."""

import pytest
import torch
from audit_texts import HIDDEN, TOKENS, known, noise, recording, share, table, texts

from flower_split.audit import metrics
from flower_split.audit.attacks.nearest import MEASURES, embeddings, nearest


@pytest.mark.parametrize("measure", MEASURES)
def test_embeddings_are_found_and_noise_tells_nothing(measure: str) -> None:
    rows, given = table(), texts()
    assert share(nearest(recording(given.victims, rows), known(rows), measure), given.victims) == 1
    found = nearest(noise(given.victims), known(rows), measure)
    assert share(found, given.victims) <= metrics.best_constant(given) + 0.1


def test_what_positions_add_is_taken_off() -> None:
    rows, given = table(), texts()
    places = 5 * torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(3))

    def bottom(ids):
        return rows[ids] + places[: ids.shape[1]]

    held = embeddings(bottom, len(rows), TOKENS)
    seen = recording(given.victims, rows).with_h1(bottom(given.victims.ids))
    assert share(nearest(seen, held, "cosine"), given.victims) == 1
