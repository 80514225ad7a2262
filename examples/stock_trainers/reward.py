"""TRL's RewardTrainer: a head of one row, which the silo trains as a whole.

::

    python reward.py
"""

import tempfile

from cut_model import REWARD, TEXTS, cut_model, tokenizer
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
            logging_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        optimizers=(optimizer or SplitAdamW(model, lr=1e-2), None),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(main())
