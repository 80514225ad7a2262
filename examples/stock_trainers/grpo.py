"""TRL's GRPOTrainer: completions are generated through the trunk.

::

    python grpo.py
"""

import tempfile

from cut_model import SHORT, cut_model, train
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer


def variety(completions: list[str], **_: object) -> list[float]:
    """The reward: how many different characters a completion has."""
    return [float(len(set(completion))) for completion in completions]


def trainer_of(model, tokens, texts, optimizer=None, **settings) -> GRPOTrainer:
    """A trainer whose prompts begin `texts`; `settings` are further ones of `GRPOConfig`."""
    data = Dataset.from_list([{"prompt": text[:12]} for text in texts])
    two = {"num_generations": 2, "max_completion_length": 8, "beta": 0.1}
    return GRPOTrainer(
        model=model,
        reward_funcs=variety,
        args=GRPOConfig(tempfile.mkdtemp(), **SHORT | two | settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokens,
        optimizers=(optimizer, None),
    )


def main(model=None, optimizer=None) -> list[float]:
    """The losses of three steps."""
    return train(trainer_of, model or cut_model(), optimizer, max_steps=3)


if __name__ == "__main__":
    print(main())
