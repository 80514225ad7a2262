"""TRL's DPOTrainer. Its reference model is a copy of the adapter, which the trunk makes too.

::

    python dpo.py
"""

import tempfile

from cut_model import SHORT, cut_model, train
from datasets import Dataset
from trl import DPOConfig, DPOTrainer


def trainer_of(model, tokens, texts, optimizer=None, **settings) -> DPOTrainer:
    """A trainer that prefers each of `texts` to another; `settings` are those of `DPOConfig`."""
    rows = [
        {"prompt": text[:12], "chosen": text[12:], "rejected": other[12:]}
        for text, other in zip(texts, reversed(texts), strict=True)
    ]
    data = Dataset.from_list(rows)
    return DPOTrainer(
        model=model,
        args=DPOConfig(tempfile.mkdtemp(), **SHORT | settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokens,
        optimizers=(optimizer, None),
    )


def main(model=None, optimizer=None) -> list[float]:
    """The losses of four steps."""
    return train(trainer_of, model or cut_model(), optimizer, max_steps=4)


if __name__ == "__main__":
    print(main())
