"""TRL's RewardTrainer: a head of one row, which the silo trains as a whole.

::

    python reward.py
"""

import tempfile

from cut_model import REWARD, SHORT, TEXTS, cut_model, losses_of, tokenizer
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from flower_split import SplitAdamW


def trainer_of(model, tokens, texts, optimizer=None, **settings) -> RewardTrainer:
    """A trainer that prefers each of `texts` to another; `settings` are `RewardConfig`'s."""
    rows = [
        {"chosen": text, "rejected": other}
        for text, other in zip(texts, reversed(texts), strict=True)
    ]
    data = Dataset.from_list(rows)
    return RewardTrainer(
        model=model,
        args=RewardConfig(tempfile.mkdtemp(), **SHORT | settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokens,
        optimizers=(optimizer, None),
    )


def main(model=None, optimizer=None) -> list[float]:
    """The losses of four steps."""
    model = model or cut_model(task=REWARD)
    optimizer = optimizer or SplitAdamW(model, lr=1e-2)
    trainer = trainer_of(model, tokenizer(), TEXTS, optimizer, max_steps=4)
    trainer.train()
    return losses_of(trainer)


if __name__ == "__main__":
    print(main())
