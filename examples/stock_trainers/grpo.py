"""TRL's GRPOTrainer: completions are generated through the trunk.

::

    python grpo.py
"""

import tempfile

from cut_model import SHORT, TEXTS, cut_model, losses_of, tokenizer
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from flower_split import SplitAdamW


def variety(completions: list[str], **_: object) -> list[float]:
    """The reward: how many different characters a completion has."""
    return [float(len(set(completion))) for completion in completions]


def main(model=None, optimizer=None) -> list[float]:
    """The losses of three steps."""
    model = model or cut_model()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=variety,
        args=GRPOConfig(
            tempfile.mkdtemp(),
            max_steps=3,
            num_generations=2,
            max_completion_length=8,
            beta=0.1,
            **SHORT,
        ),
        train_dataset=Dataset.from_list([{"prompt": text[:12]} for text in TEXTS]),
        processing_class=tokenizer(),
        optimizers=(optimizer or SplitAdamW(model, lr=1e-2), None),
    )
    trainer.train()
    return losses_of(trainer)


if __name__ == "__main__":
    print(main())
