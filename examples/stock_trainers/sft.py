"""TRL's SFTTrainer.

::

    python sft.py
"""

import tempfile

from cut_model import TEXTS, cut_model, tokenizer
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from flower_split import SplitAdamW


def main(model=None, optimizer=None) -> list[float]:
    """The losses of four steps."""
    model = model or cut_model()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            tempfile.mkdtemp(),
            max_steps=4,
            logging_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer(),
        optimizers=(optimizer or SplitAdamW(model, lr=1e-2), None),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(main())
