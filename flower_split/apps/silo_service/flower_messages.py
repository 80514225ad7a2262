"""Flower's messages and contexts as bytes, by Flower's own protobuf messages."""

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto import message_pb2, recorddict_pb2

from flower_split.errors import WireError
from flower_split.proto.silo_pb2 import Done, Offer


def offer_of(message: Message, context: Context) -> Offer:
    """What is handed to the service."""
    return Offer(
        message=message_to_proto(message).SerializeToString(),
        context=context_to_proto(context).SerializeToString(),
    )


def read_offer(offer: Offer) -> tuple[Message, Context]:
    """The message and the context in an offer.

    Raises:
        WireError: it has none.
    """
    try:
        message = message_from_proto(message_pb2.Message.FromString(offer.message))
        context = context_from_proto(message_pb2.Context.FromString(offer.context))
    except Exception as error:  # whatever Flower raises of bytes that are none of its own
        raise WireError(
            f"an offer without a Flower message came ({type(error).__name__})"
        ) from error
    return message, context


def done_of(reply: Message, context: Context) -> Done:
    """What the service brings back."""
    return Done(
        reply=message_to_proto(reply).SerializeToString(),
        state=recorddict_to_proto(context.state).SerializeToString(),
    )


def read_done(done: Done) -> tuple[Message, RecordDict]:
    """The reply, and the state of the context after it.

    Raises:
        WireError: it has none.
    """
    try:
        reply = message_from_proto(message_pb2.Message.FromString(done.reply))
        state = recorddict_from_proto(recorddict_pb2.RecordDict.FromString(done.state))
    except Exception as error:  # whatever Flower raises of bytes that are none of its own
        raise WireError(
            f"the silo service sent no Flower message back ({type(error).__name__})"
        ) from error
    return reply, state
