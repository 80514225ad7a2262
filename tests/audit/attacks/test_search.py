"""The exact search corrects what an inverter has wrong, where the bottom says so."""

import torch
from audit_texts import VOCABULARY, noise, share, table, texts

from flower_split.audit.attacks import search as searching
from flower_split.audit.attacks.search import search
from flower_split.config.wire import WireConfig


def test_proposals_are_tried_by_the_bottom(monkeypatch) -> None:
    monkeypatch.setattr(searching, "MORE", 16)
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
    # A first token of which the inverter believes the least is found all the same.
    scores[:, 0].scatter_(1, victims.ids[:, :1], -1.0)
    scores = scores.log_softmax(-1)
    found = search(seen, scores, bottom, WireConfig(h1_clip=100.0))
    assert share(found, victims) == 1 and torch.equal(found[:, 0], victims.ids[:, 0])
    found = search(noise(victims), scores.log_softmax(-1), bottom, WireConfig())
    assert share(found, victims) < 0.3
