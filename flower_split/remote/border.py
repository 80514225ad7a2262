"""The silo's border: tensors between its model and its session with the trunk."""

from collections.abc import Callable

import torch
from torch import Tensor

from flower_split.errors import ModelError, WireError
from flower_split.remote.magnitude_watch import MagnitudeWatch
from flower_split.transforms import TransformChain, TransformContext
from flower_split.transport.bounds import beyond_context, past_of
from flower_split.transport.messages import PREFIX, PREFIX_GRAD, ForwardRequest, SessionSpec


class SiloBorder:
    """Where one session's tensors leave the silo's model and enter it.

    In the model they are where it is, in the dtype in which it computes; what arrives is on the
    host.

    Args:
        spec: What the session agreed on.

    Raises:
        HandshakeError: a transform of the session is of no use here.
    """

    def __init__(self, spec: SessionSpec) -> None:
        self._spec = spec
        self._chain = TransformChain(spec, "silo")
        self._watch = MagnitudeWatch(self._chain.changes)
        self.account: Callable[[str, int], None] | None = None
        """Is told of every tensor before it leaves: its hop, and its number of token rows."""

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise `ModelError` unless the weights still are in the dtype of the session."""
        if dtype != getattr(torch, self._spec.dtype):
            raise ModelError(
                f"the client model's weights are {dtype} now, and the session was "
                f"opened with {self._spec.dtype}: convert the model first, then open the session"
            )

    def check_length(self, request: ForwardRequest, context: int) -> None:
        """Raise `ModelError` where a text is longer than the `context` of the model, as known, or
        its mask than the text."""
        before = 0 if request.prefix is None else request.prefix.shape[1]
        past = past_of(request.cache, before)
        if problem := beyond_context(request, past, context):
            raise ModelError(problem)
        rows, tokens = request.hidden.shape[:2]  # the trunk judges the whole shape
        mask = request.attention_mask
        if mask is not None and mask.shape != (rows, past + tokens):
            cached = f" and {past} cached ones" if past else ""
            raise ModelError(
                f"the attention mask has the shape {tuple(mask.shape)}, and the pass has {rows} "
                f"rows of {tokens} tokens{cached}: pass one of {(rows, past + tokens)}, or none "
                "where nothing is padded"
            )

    def context(
        self, hidden: Tensor, *, step: int, microbatch: int, attention_mask: Tensor | None
    ) -> TransformContext:
        """That of the microbatch whose h1, (B, T, H), the model computed."""
        return TransformContext(
            step=step,
            microbatch=microbatch,
            attention_mask=attention_mask,
            device=hidden.device,
            dtype=hidden.dtype,
        )

    def prefix(self, prefix: Tensor, context: TransformContext) -> Tensor:
        """The prefix, (2 L R, V, W), as a request carries it: detached.

        Raises:
            ModelError: it is not as long as the session's.
        """
        if prefix.shape[1] != self._spec.prefix_tokens:
            raise ModelError(
                f"the key-value cache has {prefix.shape[1]} tokens that are not the trunk's, and "
                f"the session was opened for a prefix of {self._spec.prefix_tokens}: open it after "
                "the client model is wrapped, or pass a new DynamicCache"
            )
        return self.outgoing(PREFIX, prefix, context)

    def prefix_grad(self, grad: Tensor | None, prefix: Tensor, context: TransformContext) -> Tensor:
        """The prefix's gradient, (2 L R, V, W), on its device and in its dtype.

        Raises:
            WireError: the trunk answered none, or one of another shape.
        """
        if grad is None or grad.shape != prefix.shape:
            found = "none" if grad is None else tuple(grad.shape)
            raise WireError(f"prefix_grad: {found}, expected {tuple(prefix.shape)}")
        return self.incoming(PREFIX_GRAD, grad, context)

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """h1 or g2, (B, T, H), as a request carries it: detached.

        Raises:
            TransformError: a transform failed.
        """
        self._watch.ask(hop, context.microbatch, tensor)
        leaving = self._chain.outgoing(hop, tensor, context)
        if self.account is not None:
            self.account(hop, leaving.shape[0] * leaving.shape[1])
        return leaving

    def incoming(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """h2 or g1, (B, T, H), on the device and in the dtype of the model's h1.

        Raises:
            TransformError: a transform failed.
            WireError: it is of a magnitude that no trunk computes.
        """
        entered = self._chain.incoming(hop, tensor, context)
        self._watch.answer(hop, context.microbatch, entered)
        return entered
