"""Run alone: the peak of memory that a trunk's pass takes, and the estimate of it, both in bytes.

`python peak_memory.py ATTENTION ROWS TOKENS [mask] [keep] [drop]`
"""

import gc
import os
import sys
from pathlib import Path

import torch
from several_silos import make_trunk, open_silo
from tiny_models import tiny_model

from flower_split.reporting.machine import resident_bytes
from flower_split.transport.messages import BackwardRequest, ForwardRequest

WIDTH = 256


def main(attention: str, rows: int, tokens: int, options: set[str]) -> None:
    model = tiny_model(
        layers=5,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_attention_heads=8,
        max_position_embeddings=tokens,
        attention_dropout=0.1 if "drop" in options else 0.0,
        attn_implementation=attention,
    )
    engine = make_trunk(model, None)
    session = open_silo(engine, 1)

    def ask(rows: int, tokens: int, number: int) -> int:
        mask = torch.ones(rows, tokens, dtype=torch.bool)
        mask[:, -1] = False
        request = ForwardRequest(
            step=0,
            microbatch=number,
            hidden=torch.randn(rows, tokens, WIDTH),
            attention_mask=mask if "mask" in options else None,
            keep_graph="keep" in options,
            dropout="drop" in options,
        )
        session.forward(request)
        if request.keep_graph:
            grad = torch.ones_like(request.hidden)
            session.backward(BackwardRequest(step=0, microbatch=number, grad=grad))
        return engine.queue.memory.admit(request, 0)

    ask(1, 8, 0)
    gc.collect()
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far
    estimate = ask(rows, tokens, 1)
    print(resident_bytes(peak=True) - before, estimate, flush=True)
    os._exit(0)  # the trunk's thread would be ended in the midst of its wait


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), set(sys.argv[4:]))
