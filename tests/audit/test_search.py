"""The exact search corrects what an inverter has wrong, where the bottom says so."""

import torch
from audit_texts import VOCABULARY, noise, share, table, texts

from flower_split.audit.search import search
from flower_split.config.wire import WireConfig


def test_proposals_are_tried_by_the_bottom() -> None:
    given, rows = texts(8), table()
    mixing = torch.linalg.qr(table(3)[:24])[0]

    def bottom(ids):
        """h1 that depends on all tokens before."""
        return torch.tanh(rows[ids].cumsum(1) @ mixing)

    victims = given.victims
    h1 = bottom(victims.ids) * victims.mask[..., None]
    seen = noise(victims).with_h1(h1)
    # The right token is the fifth best of what is proposed.
    scores = torch.rand(*victims.ids.shape, VOCABULARY, generator=torch.Generator().manual_seed(0))
    fifth = scores.sort(descending=True).values[..., 4]
    scores.scatter_(2, victims.ids[..., None], fifth[..., None])
    found = search(seen, scores.log_softmax(-1), bottom, WireConfig())
    assert share(found, victims) == 1
    assert share(scores.argmax(-1), victims) < 0.2
    found = search(noise(victims), scores.log_softmax(-1), bottom, WireConfig())
    assert share(found, victims) < 0.3
