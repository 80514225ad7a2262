"""A ClientApp that trains a round with the Hugging Face Trainer, and evaluates with it."""

import tempfile

from flwr.clientapp import ClientApp
from transformers import Trainer, TrainingArguments

from flower_split import SplitSession

app = ClientApp()


def trainer_of(model, batches, optimizer=None) -> Trainer:
    """A Trainer of the silo's batches, which have their rows and labels already."""
    return Trainer(
        model=model,
        args=TrainingArguments(
            tempfile.mkdtemp(),
            num_train_epochs=1,
            per_device_train_batch_size=1,  # batches
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=2,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=batches,
        eval_dataset=batches,
        data_collator=lambda batch: batch[0],
        optimizers=(optimizer, None),
    )


@app.train()
def train(message, context):
    with SplitSession(message, context) as session:
        batches = list(session.train_batches())
        trainer = trainer_of(session.model, batches, session.optimizer)
        return session.reply({"train-loss": trainer.train().training_loss})


@app.evaluate()
def evaluate(message, context):
    with SplitSession(message, context) as session:
        trainer = trainer_of(session.model, list(session.eval_batches()))
        return session.reply({"eval-loss": trainer.evaluate()["eval_loss"]})
