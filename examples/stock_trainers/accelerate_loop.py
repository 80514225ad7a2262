"""A loop of one's own with accelerate: accumulation, clipping, a schedule.

::

    python accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from cut_model import TEXTS, cut_model, tokenizer

from flower_split import SplitAdamW


def main(model=None, optimizer=None) -> list[float]:
    """The loss of every microbatch."""
    model = model or cut_model()
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    optimizer = optimizer or SplitAdamW(model, lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=4)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    tokens, losses = tokenizer(), []
    for text in TEXTS:
        batch = tokens(text, return_tensors="pt")
        with accelerator.accumulate(model):
            loss = model(**batch, labels=batch["input_ids"]).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(main())
