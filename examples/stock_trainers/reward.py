"""TRL's RewardTrainer: a head of one row, which the silo trains as a whole.

::

    python reward.py
"""

import tempfile

from cut_model import REWARD, SHORT, TEXTS, cut_model, losses_of, tokenizer
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from flower_split import SplitAdamW


def main(model=None, optimizer=None) -> list[float]:
    """The losses of four steps."""
    model = model or cut_model(task=REWARD)
    rows = [
        {"chosen": text, "rejected": other}
        for text, other in zip(TEXTS, reversed(TEXTS), strict=True)
    ]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
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
