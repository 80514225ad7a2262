"""A ClientApp whose rounds one of TRL's trainers trains and evaluates.

`app` is DPO's; `app_of(sft.trainer_of)` is another's, and so are those of `grpo` and `reward`. The
run config of a reward model has `model.task` "sequence-classification", one name in `model.labels`,
and an empty `data.label`.
"""

import dpo
from cut_model import TEXTS
from flwr.clientapp import ClientApp

from flower_split import SplitSession


def texts_of(context) -> list[str]:
    """The silo's texts, in place of a file of its own."""
    node = context.node_config
    return TEXTS[node["partition-id"] :: node["num-partitions"]]


def app_of(trainer_of) -> ClientApp:
    """The ClientApp of the trainer that `trainer_of` makes."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        with SplitSession(message, context) as session:
            texts, optimizer = texts_of(context), session.optimizer
            trainer = trainer_of(session.model, session.tokenizer, texts, optimizer, max_steps=2)
            loss = trainer.train().training_loss
            return session.reply({"train-loss": loss}, num_examples=len(texts))

    @app.evaluate()
    def evaluate(message, context):
        with SplitSession(message, context) as session:
            texts = texts_of(context)
            trainer = trainer_of(session.model, session.tokenizer, texts)
            loss = trainer.evaluate()["eval_loss"]
            return session.reply({"eval-loss": loss}, num_examples=len(texts))

    return app


app = app_of(dpo.trainer_of)
