"""A ClientApp with a training loop of its own, around the trunk."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flower_split import SplitSession
from flower_split.apps.answering import answering

app = ClientApp()


@app.train()
@answering
def train(message: Message, context: Context) -> Message:
    with SplitSession(message, context) as session:
        for microbatches in session.train_steps():
            step = session.accumulate(microbatches)
            session.optimizer.step()
            session.optimizer.zero_grad()
        return session.reply({"train-loss": step.loss})


@app.evaluate()
@answering
def evaluate(message: Message, context: Context) -> Message:
    with SplitSession(message, context) as session:
        return session.reply({"eval-loss": session.evaluate().loss})
