"""TRL's RewardTrainer: a head of one row, which the silo trains as a whole.

::

    python reward.py
"""

import tempfile

from cut_model import REWARD, SHORT, cut_model, train
from datasets import Dataset
from trl import RewardConfig, RewardTrainer


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
    return train(trainer_of, model or cut_model(task=REWARD), optimizer, max_steps=4)


if __name__ == "__main__":
    print(main())
