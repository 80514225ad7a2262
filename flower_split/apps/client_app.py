"""The ready-made ClientApp: trains and evaluates as the run config says.

Where the node config names a silo service, that does it, and this process imports neither torch nor
transformers. `flwr run` imports this module too, only to find `app`: hence the late imports.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flower_split.apps.answering import answering
from flower_split.apps.silo_service.resident import resident

app = ClientApp()


@app.train()
@answering
@resident
def train(message: Message, context: Context) -> Message:
    """One round of local training through the trunk."""
    from flower_split.apps.silo_service import handlers

    return handlers.train(message, context)


@app.evaluate()
@answering
@resident
def evaluate(message: Message, context: Context) -> Message:
    """Loss, accuracy and the task's own metric on the silo's held-out data, through the trunk."""
    from flower_split.apps.silo_service import handlers

    return handlers.evaluate(message, context)


@app.query()
@resident
def query(message: Message, context: Context) -> Message:
    """The silo's name, where its order among the others matters."""
    from flower_split.apps.silo_service import handlers

    return handlers.query(message, context)
