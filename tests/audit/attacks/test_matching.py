"""Continuous matching goes back through a bottom that it knows, and finds nothing in noise."""

import torch
from audit_texts import HIDDEN, VOCABULARY, noise, share, table, texts

from flower_split.audit import metrics
from flower_split.audit.attacks.matching import match
from flower_split.compression.table import CODEC_TABLE, round_trip
from flower_split.config.wire import WireConfig

MIXING = torch.linalg.qr(table(3)[:HIDDEN])[0]


def bottom(embedded, mask):
    """h1 that depends on all tokens before."""
    return torch.tanh(0.3 * (embedded + 0.5 * embedded.cumsum(1)) @ MIXING)


def test_texts_are_found_from_no_belief() -> None:
    given, rows = texts(8), table()
    victims = given.victims
    h1 = bottom(rows[victims.ids], victims.mask) * victims.mask[..., None]
    nothing = given.prior.log().expand(*victims.ids.shape, VOCABULARY)
    assert share(nothing.argmax(-1), victims) < 0.2
    made = match(noise(victims).with_h1(h1), nothing, rows, bottom, WireConfig())
    assert made.converged and made.error < 1e-3 and share(made.found, victims) == 1

    few = match(noise(victims).with_h1(h1), nothing, rows, bottom, WireConfig(), steps=2)
    assert not few.converged and few.steps == 2


def test_clipped_rows_are_matched_as_they_were_clipped() -> None:
    given, rows = texts(8), table()
    victims = given.victims
    h1 = bottom(rows[victims.ids], victims.mask) * victims.mask[..., None]
    short = h1 * (1.5 / h1.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1)
    believed = given.prior.log().expand(*victims.ids.shape, VOCABULARY)
    wire = WireConfig(h1_clip=1.5)
    made = match(noise(victims).with_h1(short), believed, rows, bottom, wire)
    assert made.converged and share(made.found, victims) > 0.9


def test_what_a_codec_rounds_need_not_be_matched() -> None:
    given, rows = texts(8), table()
    victims = given.victims
    h1 = bottom(rows[victims.ids], victims.mask) * victims.mask[..., None]
    believed = given.prior.log().expand(*victims.ids.shape, VOCABULARY)
    coarse = noise(victims).with_h1(round_trip(h1, CODEC_TABLE["nf4"], "h1"))
    made = match(coarse, believed, rows, bottom, WireConfig(h1="nf4"), steps=30)
    unaware = match(coarse, believed, rows, bottom, WireConfig(), steps=30)
    assert made.converged and not unaware.converged
    assert made.error == unaware.error > 3e-4 and share(made.found, victims) > 0.9


def test_noise_leaves_what_was_believed_before() -> None:
    given, rows = texts(24), table()
    victims = given.victims
    believed = given.prior.log().expand(*victims.ids.shape, VOCABULARY)
    wire = WireConfig(h1_clip=1.0, h1_noise=100.0)
    loud = noise(victims).with_h1(100 * noise(victims).h1)
    made = match(loud, believed, rows, bottom, wire)
    assert made.converged and share(made.found, victims) <= metrics.best_constant(given) + 0.1
