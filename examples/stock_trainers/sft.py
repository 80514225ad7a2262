"""TRL's SFTTrainer.

::

    python sft.py
"""

import tempfile

from cut_model import SHORT, cut_model, train
from datasets import Dataset
from trl import SFTConfig, SFTTrainer


def trainer_of(model, tokens, texts, optimizer=None, **settings) -> SFTTrainer:
    """A trainer on `texts`; `settings` are further ones of `SFTConfig`."""
    data = Dataset.from_dict({"text": texts})
    return SFTTrainer(
        model=model,
        args=SFTConfig(tempfile.mkdtemp(), **SHORT | settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokens,
        optimizers=(optimizer, None),
    )


def main(model=None, optimizer=None, **settings) -> list[float]:
    """The losses of four steps; `settings` are further ones of `SFTConfig`."""
    return train(trainer_of, model or cut_model(), optimizer, max_steps=4, **settings)


if __name__ == "__main__":
    print(main())
