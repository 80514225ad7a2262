"""TRL's DPOTrainer. Its reference model is a copy of the adapter, which the trunk makes too.

::

    python dpo.py
"""

import tempfile

from cut_model import SHORT, TEXTS, cut_model, losses_of, tokenizer
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from flower_split import SplitAdamW


def main(model=None, optimizer=None) -> list[float]:
    """The losses of four steps."""
    model = model or cut_model()
    rows = [
        {"prompt": text[:12], "chosen": text[12:], "rejected": other[12:]}
        for text, other in zip(TEXTS, reversed(TEXTS), strict=True)
    ]
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            tempfile.mkdtemp(),
            max_steps=4,
            **SHORT,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        optimizers=(optimizer or SplitAdamW(model, lr=1e-2), None),
    )
    trainer.train()
    return losses_of(trainer)


if __name__ == "__main__":
    print(main())
