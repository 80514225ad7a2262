"""The Hugging Face Trainer with its default arguments, resumed from a checkpoint.

::

    python trainer.py [folder]
"""

import sys
import tempfile

from cut_model import TEXTS, cut_model, losses_of, tokenizer
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from flower_split import SplitAdamW


def main(folder: str, model=None, *, split: bool = True) -> list[float]:
    """The losses of a run that stops after four steps, and of one that resumes from there."""
    model = model or cut_model()
    tokens = tokenizer()
    data = Dataset.from_dict(dict(tokens(TEXTS, truncation=True, max_length=32)))
    losses = []
    for steps, checkpoint in ((4, None), (8, f"{folder}/checkpoint-4")):
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=steps,
                save_steps=4,
                logging_steps=1,
                learning_rate=1e-2,
                per_device_train_batch_size=2,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=data,
            data_collator=DataCollatorForLanguageModeling(tokens, mlm=False),
            # AdamW on both sides of the cut; without it the Trainer's own one would be refused
            optimizers=(SplitAdamW(model, lr=1e-2), None) if split else (None, None),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        losses += losses_of(trainer)
    return losses


if __name__ == "__main__":
    print(main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
