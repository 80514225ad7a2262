"""The bounds of a request's tensors: what fits the model and what one microbatch may have.

Both ends of the trunk's channel hold to them: the reader of frames before anything is allocated,
by the shapes that a silo announces, and a session by the tensors themselves.

Axes: B rows of a microbatch, T new tokens a row, H hidden size.
"""

import math
from collections.abc import Sequence

from flower_split.errors import TrunkBusyError, WireError
from flower_split.transport.messages import (
    CacheUse,
    ForwardRequest,
    SessionLimits,
    SessionSpec,
)

Shape = Sequence[int]

MOST_EDITS = 64
"""Changes of a key-value cache between two passes; `generate()` makes one or two."""


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


def check_prefix(
    shape: Shape, hidden: Shape, spec: SessionSpec, limits: SessionLimits, hidden_size: int | None
) -> None:
    """Raise unless a prefix of that shape, (2 L R, V, W), may go with h1.

    Args:
        shape: Of the prefix.
        hidden: Of h1, (B, T, H).
        spec: Of the session, which says V.
        limits: Of the session.
        hidden_size: H of the model; None takes any.

    Raises:
        WireError: the session has no prefix, or none of that shape.
        TrunkBusyError: rows and prefix together are more than a microbatch may have.
    """
    if not spec.prefix_tokens:
        raise WireError("prefix: this session was opened without one")
    rows, tokens = hidden[:2]
    tensors = 2 * (spec.num_layers - spec.bottom_layers - spec.top_layers)
    if len(shape) != 3 or shape[0] not in (tensors, tensors * rows) or shape[2] < 1:
        raise WireError(
            f"prefix: shape {tuple(shape)}, expected {tensors} keys and values, of one or of "
            f"{rows} rows each"
        )
    if shape[1] != spec.prefix_tokens:
        raise WireError(f"prefix: {shape[1]} tokens, the session's has {spec.prefix_tokens}")
    most = limits.max_message_tokens
    if rows * (tokens + shape[1]) > most or math.prod(shape) > most * (hidden_size or shape[2]):
        raise TrunkBusyError(
            f"prefix: {rows} x {tokens} tokens with {shape[1]} before each, of shape "
            f"{tuple(shape)}; the trunk takes at most {most} tokens. Lower train.batch-size or "
            "peft.num-virtual-tokens, or raise trunk.max-message-tokens"
        )


def check_edits(sizes: Sequence[int], limits: SessionLimits) -> None:
    """Raise unless a request may change its key-value cache so often.

    Args:
        sizes: How many values each edit has.
        limits: Of the session.

    Raises:
        WireError: there are too many edits, or values that no cache has rows for.
    """
    if len(sizes) > MOST_EDITS or sum(sizes) > limits.max_cached_tokens:
        raise WireError(
            f"{len(sizes)} cache edits with {sum(sizes)} values; a request brings at most "
            f"{MOST_EDITS} with {limits.max_cached_tokens}. Call the model between the changes, or "
            "raise trunk.max-cached-tokens"
        )


def beyond_context(request: ForwardRequest, past: int, context: int) -> str:
    """What is wrong where a token has a position that the model was not made for; else empty.

    Several texts in a row, whose positions begin again, may be longer than one of them. Positions
    on an accelerator are those of a silo in this process, and are not waited for.

    Args:
        request: The request.
        past: Tokens in the key-value cache that the pass extends.
        context: Positions that the model was made for; 0 takes any.
    """
    positions = request.position_ids
    if not context or (positions is not None and positions.device.type != "cpu"):
        return ""
    end = past + request.hidden.shape[1] if positions is None else int(positions.max()) + 1
    if end <= context:
        return ""
    what = f"{past} + {request.hidden.shape[1]} tokens" if positions is None else "position_ids"
    return (
        f"{what} up to position {end - 1}; the model was made for {context} tokens, positions 0 to "
        f"{context - 1}. Cut texts off at {context} tokens: lower train.max-length, or generate "
        "fewer"
    )


def past_of(use: CacheUse | None, prefix: int) -> int:
    """Tokens that a pass has before its own.

    Args:
        use: The cache that it extends; None for none.
        prefix: Tokens of the prefix that it brings; 0 for none.

    Raises:
        WireError: it extends a cache that has something else in it than the prefix.
    """
    if use is None:
        return prefix
    if prefix and (use.edits or use.past_length != prefix):
        raise WireError(
            f"prefix of {prefix} tokens for a cache of {use.past_length} tokens; it is what a "
            "cache begins with"
        )
    return use.past_length


def check_forward(
    request: ForwardRequest,
    hidden_size: int,
    limits: SessionLimits,
    spec: SessionSpec,
    context: int = 0,
) -> int:
    """Tokens that each row has before those of `request`, whose tensors may be computed.

    Raises:
        WireError: they may not; see the checks.
        TrunkBusyError: a bound is reached; see the checks.
    """
    hidden, mask, positions = request.hidden, request.attention_mask, request.position_ids
    check_hidden("h1", hidden.shape, limits, hidden_size)
    if request.prefix is not None:
        check_prefix(request.prefix.shape, hidden.shape, spec, limits, hidden_size)
    if request.cache is not None:
        check_edits([len(edit.values) for edit in request.cache.edits], limits)
    past = past_of(request.cache, 0 if request.prefix is None else request.prefix.shape[1])
    check_context(
        hidden.shape,
        None if mask is None else mask.shape,
        None if positions is None else positions.shape,
        past,
        limits,
    )
    if problem := beyond_context(request, past, context):
        raise WireError(problem)
    return past
