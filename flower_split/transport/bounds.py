"""The bounds of a request's tensors: what fits the model and what one microbatch may have.

Both ends of the trunk's channel hold to them: the reader of frames before anything is allocated,
by the shapes that a silo announces, and a session by the tensors themselves.

Axes: B rows of a microbatch, T new tokens a row, H hidden size.
"""

import math
from collections.abc import Sequence

from flower_split.errors import TrunkBusyError, WireError
from flower_split.transport.messages import ForwardRequest, SessionLimits

Shape = Sequence[int]


def check_hidden(name: str, shape: Shape, limits: SessionLimits, hidden_size: int | None) -> None:
    """Raise unless h1 or g2 of that shape, (B, T, H), may be sent.

    Args:
        name: Of the tensor.
        shape: Of the tensor.
        limits: Of the session.
        hidden_size: H of the model; None takes any.

    Raises:
        WireError: it does not fit the model, or is empty.
        TrunkBusyError: it has more tokens than a microbatch may have.
    """
    if len(shape) != 3 or 0 in shape:
        raise WireError(f"{name}: shape {tuple(shape)}, expected (rows, tokens, hidden size)")
    rows, tokens, hidden = shape
    if rows * tokens > limits.max_message_tokens:
        raise TrunkBusyError(
            f"{name}: {rows} x {tokens} tokens; the trunk takes at most "
            f"{limits.max_message_tokens}. Lower train.batch-size, or raise "
            "trunk.max-message-tokens"
        )
    if hidden_size is not None and hidden != hidden_size:
        raise WireError(f"{name}: hidden size {hidden}, the trunk's is {hidden_size}")


def check_context(
    hidden: Shape, mask: Shape | None, positions: Shape | None, past: int, limits: SessionLimits
) -> None:
    """Raise unless attention mask and position ids fit h1.

    Args:
        hidden: Shape of h1, (B, T, H).
        mask: Shape of the attention mask; None for none.
        positions: Shape of the position ids; None for none.
        past: Tokens in the key-value cache that the pass extends.
        limits: Of the session.

    Raises:
        WireError: a shape does not fit.
        TrunkBusyError: the mask covers more tokens than the trunk keeps.
    """
    rows, tokens = hidden[:2]
    if mask is not None:
        if tuple(mask) != (rows, past + tokens):
            raise WireError(
                f"attention_mask: shape {tuple(mask)}, expected {(rows, past + tokens)}"
            )
        bound = max(limits.max_message_tokens, limits.max_cached_tokens)
        if math.prod(mask) > bound:
            raise TrunkBusyError(
                f"attention_mask: {rows} x {mask[1]} tokens; the trunk takes at most {bound}. "
                "Raise trunk.max-cached-tokens"
            )
    if positions is not None and tuple(positions) not in ((rows, tokens), (1, tokens)):
        raise WireError(
            f"position_ids: shape {tuple(positions)}, expected {(rows, tokens)} or {(1, tokens)}"
        )


def check_forward(request: ForwardRequest, hidden_size: int, limits: SessionLimits) -> None:
    """Raise unless the tensors of `request` may be computed; see the two checks."""
    hidden, mask, positions = request.hidden, request.attention_mask, request.position_ids
    check_hidden("h1", hidden.shape, limits, hidden_size)
    check_context(
        hidden.shape,
        None if mask is None else mask.shape,
        None if positions is None else positions.shape,
        0 if request.cache is None else request.cache.past_length,
        limits,
    )
