"""The ready-made ClientApp: trains and evaluates as the run config says."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flower_split.apps.answering import answering

app = ClientApp()


@app.train()
@answering
def train(message: Message, context: Context) -> Message:
    """One round of local training through the trunk."""
    # Imported late, because `flwr run` imports this module too, only to find `app`.
    from flower_split.apps.process import set_up_process
    from flower_split.client import SplitSession
    from flower_split.client.rendering import show_examples

    set_up_process()
    with SplitSession(message, context) as session:
        show_examples(session)
        trained = session.train()
        return session.reply({"train-loss": trained.loss, "train-tokens": trained.tokens})


@app.evaluate()
@answering
def evaluate(message: Message, context: Context) -> Message:
    """Loss, accuracy and the task's own metric on the silo's held-out data, through the trunk."""
    from flower_split.apps.process import set_up_process
    from flower_split.client import SplitSession

    set_up_process()
    with SplitSession(message, context) as session:
        found = session.evaluate()
        if session.invitation.sample:
            session.generate(session.config.sample_prompt)
        return session.reply(found.reported(), num_examples=found.weight(session.config.model.task))


@app.query()
def query(message: Message, context: Context) -> Message:
    """The silo's name, where its order among the others matters."""
    from flower_split.client.name_query import answer_name_query

    return answer_name_query(message, context)
