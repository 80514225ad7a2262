"""The answer to the query for a silo's name: `app.query()(answer_name_query)` in a ClientApp."""

from flwr.app import ConfigRecord, Context, Message, RecordDict

from flower_split.client.node_config import NodeConfig
from flower_split.errors import WireError
from flower_split.transport.invitation import ANSWER, QUESTION, SPLIT_RECORD


def answer_name_query(message: Message, context: Context) -> Message:
    """The reply that tells the silo's name and nothing else.

    Raises:
        WireError: the message asks for something else.
        ConfigError: the node config is not valid.
    """
    asked = message.content.config_records.get(SPLIT_RECORD, ConfigRecord())
    if asked.get(QUESTION) is not True:
        raise WireError(
            "the message does not ask for the silo's name, the only query that is answered"
        )
    name = NodeConfig.read(context.node_config).name(context.node_id)
    return Message(RecordDict({SPLIT_RECORD: ConfigRecord({ANSWER: name})}), reply_to=message)
