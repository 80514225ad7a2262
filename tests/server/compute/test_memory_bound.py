"""What one pass needs is bounded before it is made, and is not more than was estimated."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from several_silos import make_trunk, open_silo
from started_processes import python_path
from tiny_models import tiny_model

import flower_split
from flower_split.errors import TrunkBusyError
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.compute.scheduler import Scheduler, Turn
from flower_split.transport.messages import CacheUse, ForwardRequest

MEASURE = Path(__file__).parents[2] / "support" / "peak_memory.py"


def request(rows: int, tokens: int, **fields: Any) -> ForwardRequest:
    return ForwardRequest(step=0, microbatch=0, hidden=torch.zeros(rows, tokens, 32), **fields)


def needed(attention: str, asked: ForwardRequest, past: int = 0, **changes: Any) -> int:
    model = tiny_model(layers=4, attn_implementation=attention, **changes)
    return make_trunk(model, None).queue.memory.admit(asked, past)


def test_the_bound_is_told_before_anything_is_computed() -> None:
    engine = make_trunk(tiny_model(), BatchSettings(max_memory=0.001))
    session = open_silo(engine, 1)
    session.forward(request(1, 16))
    asked = replace(request(8, 64, keep_graph=True), microbatch=1)
    with pytest.raises(TrunkBusyError, match=r"8 x 64 tokens .* 0.001 GB. .* trunk.max-memory"):
        session.forward(asked)


def test_without_a_bound_the_machine_has_one() -> None:
    bound = make_trunk(tiny_model(), None).queue.memory.max_bytes
    assert 2**20 < bound < 2**46


@pytest.mark.medium
def test_scores_grow_with_the_square_of_the_length_where_attention_makes_them() -> None:
    assert needed("eager", request(1, 4000)) > 12 * needed("eager", request(1, 1000))
    assert needed("sdpa", request(1, 4000)) == 4 * needed("sdpa", request(1, 1000))


def test_what_is_kept_and_what_is_cached_counts() -> None:
    bare = needed("sdpa", request(2, 8))
    assert needed("sdpa", request(2, 8, keep_graph=True)) == 3 * bare  # of one layer, and of two
    extending = request(2, 1, cache=CacheUse(cache_id=0, past_length=99))
    assert needed("sdpa", extending, 99) > needed("sdpa", extending, 9)


def test_dropout_of_attention_costs_more() -> None:
    dropping = request(1, 64, keep_graph=True, dropout=True)
    still = request(1, 64, keep_graph=True)
    assert needed("eager", dropping, attention_dropout=0.1) > needed("eager", still)


def test_a_batch_of_several_silos_is_bounded_too() -> None:
    scheduler = Scheduler(max_tokens=1000, gather=0.0, max_memory=250)
    turns = [
        Turn(session=n, kind="forward", rows=1, tokens=9, arrived=n, mix="any", memory=100)
        for n in range(3)
    ]
    for turn in turns:
        scheduler.add(turn)
    assert scheduler.next(10.0, 1e9) == turns[:2]
    assert scheduler.next(10.0, 1e9) == turns[2:]


@pytest.mark.sampled(keep=2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "rows", "tokens", "options"),
    [
        ("eager", 1, 2048, ()),
        ("eager", 1, 2048, ("mask", "keep")),
        ("eager", 1, 1024, ("mask", "keep", "drop")),
        ("sdpa", 1, 4096, ("mask",)),
        ("sdpa", 1, 4096, ("mask", "keep")),
        ("sdpa", 1, 1024, ("mask", "keep", "drop")),
        ("sdpa", 8, 512, ("keep",)),
        ("eager", 8, 512, ("mask", "keep")),
    ],
)
def test_a_pass_takes_no_more_than_estimated_and_not_far_less(
    attention: str, rows: int, tokens: int, options: tuple[str, ...]
) -> None:
    command = [sys.executable, str(MEASURE), attention, str(rows), str(tokens), *options]
    found = {**os.environ, "PYTHONPATH": python_path(Path(flower_split.__file__).parents[1])}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env=found
    )
    peak, estimate = map(int, run.stdout.split())
    assert peak < estimate < 5 * peak
