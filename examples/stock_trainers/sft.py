"""TRL's SFTTrainer.

::

    python sft.py
"""

import tempfile

from cut_model import SHORT, TEXTS, cut_model, losses_of, tokenizer
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from flower_split import SplitAdamW


def main(model=None, optimizer=None, **settings) -> list[float]:
    """The losses of four steps; `settings` are further ones of `SFTConfig`."""
    model = model or cut_model()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            tempfile.mkdtemp(),
            max_steps=4,
            **SHORT,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer(),
        optimizers=(optimizer or SplitAdamW(model, lr=1e-2), None),
    )
    trainer.train()
    return losses_of(trainer)


if __name__ == "__main__":
    print(main())
