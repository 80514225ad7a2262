"""Checks of a forward request: it fits the model, and the trunk may keep what it asks for.

Axes: B rows of a microbatch, T new tokens a row, H hidden size.
"""

from collections.abc import Sequence

from flower_split.errors import SequenceError, TrunkBusyError, WireError
from flower_split.segments import Trunk
from flower_split.server.compute.batch import ActivationBudget
from flower_split.transport.messages import ForwardRequest, SessionLimits, SessionSpec


def check_forward(request: ForwardRequest, trunk: Trunk, limits: SessionLimits) -> None:
    """Raise unless shapes fit the model.

    Raises:
        TrunkBusyError: more tokens than a microbatch may have.
        WireError: something does not fit.
    """
    hidden, mask, positions = request.hidden, request.attention_mask, request.position_ids
    width = trunk.hidden_size
    if hidden.dim() != 3 or 0 in hidden.shape or hidden.shape[2] != width:
        raise WireError(f"h1 is {tuple(hidden.shape)}, expected (rows, tokens, {width})")
    rows, tokens = hidden.shape[:2]
    if rows * tokens > limits.max_message_tokens:
        raise TrunkBusyError(
            f"the microbatch has {rows * tokens} tokens; the trunk takes at most "
            f"{limits.max_message_tokens}. Lower train.batch-size, or raise "
            "trunk.max-message-tokens"
        )
    past = 0 if request.cache is None else request.cache.past_length
    if mask is not None and tuple(mask.shape) != (rows, past + tokens):
        raise WireError(f"attention mask is {tuple(mask.shape)}, expected {(rows, past + tokens)}")
    if positions is not None and tuple(positions.shape) not in ((rows, tokens), (1, tokens)):
        raise WireError(f"position ids are {tuple(positions.shape)}, expected {(rows, tokens)}")


def check_keeping(
    request: ForwardRequest,
    spec: SessionSpec,
    limits: SessionLimits,
    held: Sequence[tuple[int, int]],
    budget: ActivationBudget,
) -> None:
    """Raise unless the session may have this microbatch wait for a backward pass.

    Args:
        request: The microbatch.
        spec: Of the session.
        limits: Of the session.
        held: Rows and tokens of each microbatch that it has waiting already.
        budget: Of all sessions.

    Raises:
        SequenceError: it makes no backward passes, or not after such a forward pass.
        TrunkBusyError: it would hold more than one session may.
    """
    if spec.purpose != "train" or (request.cache is not None and request.cache.past_length):
        raise SequenceError(
            "a graph is kept only in a training session and without a filled key-value "
            "cache; evaluate and generate under torch.no_grad()"
        )
    if len(held) >= limits.max_in_flight:
        raise TrunkBusyError(
            f"{len(held)} microbatches wait for their backward pass, the trunk's "
            "limit. Make backward passes sooner, or raise trunk.max-in-flight"
        )
    waiting = sum(rows * tokens for rows, tokens in held)
    tokens = request.hidden.shape[0] * request.hidden.shape[1]
    if budget.max_tokens and waiting + tokens > budget.max_tokens:
        raise TrunkBusyError(
            f"{waiting} tokens of the session wait for their backward pass, and with {tokens} "
            f"more it alone would exceed the trunk's bound of {budget.max_tokens} over all "
            "sessions. Lower train.batch-size or train.in-flight, or raise "
            "trunk.max-activation-tokens"
        )
