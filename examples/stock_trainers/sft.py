"""TRL's SFTTrainer.

::

    python sft.py
"""

import tempfile

from cut_model import SHORT, TEXTS, cut_model, losses_of, tokenizer
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from flower_split import SplitAdamW


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
    model = model or cut_model()
    optimizer = optimizer or SplitAdamW(model, lr=1e-2)
    trainer = trainer_of(model, tokenizer(), TEXTS, optimizer, max_steps=4, **settings)
    trainer.train()
    return losses_of(trainer)


if __name__ == "__main__":
    print(main())
