"""Run alone: the peak of memory that training steps of silo and trunk take, in bytes.

`python toy_run_memory.py FOLDER BOTTOM TOP ROWS TOKENS`: the model of FOLDER, both parties in this
process; prints what the process grew by, and the payload of a step.
"""

import gc
import os
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from flower_split import (
    LocalTransport,
    SplitAdamW,
    attach_trunk,
    load_client_model,
    load_trunk,
)
from flower_split.reporting.machine import resident_bytes


def main(folder: str, bottom: int, top: int, rows: int, tokens: int) -> None:
    cuts = {"bottom_layers": bottom, "top_layers": top}
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    ids = torch.randint(0, 50, (rows, tokens))

    def parties():
        model = load_client_model(folder, **cuts)
        transport = LocalTransport(load_trunk(folder, **cuts))
        attach_trunk(model, transport)
        model = get_peft_model(model, lora)
        return model, transport, SplitAdamW(model, lr=1e-3)

    def step(model, optimizer, ids):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model, transport, optimizer = parties()  # what libraries allocate once, they have now
    step(model, optimizer, ids[:1, :8])
    del model, transport, optimizer
    gc.collect()
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far
    model, transport, optimizer = parties()
    model.train()
    for _ in range(2):
        sent = transport.bytes_sent + transport.bytes_received
        step(model, optimizer, ids)
    payload = transport.bytes_sent + transport.bytes_received - sent
    print(resident_bytes(peak=True) - before, payload, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
