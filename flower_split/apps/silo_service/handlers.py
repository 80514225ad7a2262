"""Handlers: what the ready-made ClientApp does with each kind of message, in whichever process."""

from flwr.app import Context, Message

from flower_split.apps.process import set_up_process
from flower_split.client import SplitSession, answer_name_query
from flower_split.client.rendering import show_examples


def train(message: Message, context: Context) -> Message:
    """One round of local training through the trunk."""
    set_up_process()
    with SplitSession(message, context) as session:
        show_examples(session)
        trained = session.train()
        return session.reply({"train-loss": trained.loss, "train-tokens": trained.tokens})


def evaluate(message: Message, context: Context) -> Message:
    """Loss, accuracy and the task's own metric on the silo's held-out data, through the trunk."""
    set_up_process()
    with SplitSession(message, context) as session:
        found = session.evaluate()
        if session.invitation.sample:
            session.generate(session.config.sample_prompt)
        return session.reply(found.reported(), num_examples=found.weight(session.config.model.task))


def query(message: Message, context: Context) -> Message:
    """The silo's name, where its order among the others matters."""
    return answer_name_query(message, context)


HANDLERS = {"train": train, "evaluate": evaluate, "query": query}
"""By the kind of message."""
