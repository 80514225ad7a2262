"""The remote trunk: the layer of the client model that stands for all the trunk's layers."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from flower_split.devices import mark_ready
from flower_split.errors import ModelError
from flower_split.remote.border import SiloBorder
from flower_split.remote.caching import CacheLedger
from flower_split.remote.exchange import Exchange
from flower_split.segments import TrunkPlace, TrunkSlot
from flower_split.transforms import TransformContext
from flower_split.transport.base import Transport
from flower_split.transport.messages import CacheUse, ForwardRequest, SessionSummary


class RemoteTrunk(TrunkPlace):
    """Sends what the bottom computed to the trunk and returns what the trunk answered.

    Made by `attach_trunk`. Requests carry the 2-D attention mask and the position ids with which
    the stock model was called, because the trunk needs them to compute as the uncut model does.

    Args:
        slot: The place in the client model.
        transport: An open session.

    Raises:
        HandshakeError: a transform of the session is of no use here.
    """

    def __init__(self, slot: "TrunkSlot | RemoteTrunk", transport: Transport) -> None:
        super().__init__(slot, family=slot.family, cuts=slot.cuts, fingerprint=slot.fingerprint)
        self.transport = transport
        self.border = SiloBorder(transport.spec)
        self.steps = 0
        self._microbatches = 0
        self._mask: Tensor | None = None
        self._positions: Tensor | None = None
        self._caches = CacheLedger(self.cuts.trunk_range)

    def connect(self, transport: Transport) -> None:
        """Use another session from now on; its counts start at zero."""
        self.border = SiloBorder(transport.spec)
        self.transport = transport
        self.steps = self._microbatches = 0
        self._caches = CacheLedger(self.cuts.trunk_range)

    def called_with(self, attention_mask: Any, position_ids: Any) -> None:
        """Note what the stock model was called with, for the requests of this pass.

        Raises:
            ModelError: the mask is not 2-D, so the trunk could not make its own from it.
        """
        if attention_mask is not None and (
            not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2
        ):
            raise ModelError(
                "a split model takes a 2-D attention mask, (rows, tokens), because the trunk makes "
                "its own from it. Pass the tokenizer's mask, and generate with the default "
                "DynamicCache"
            )
        self._mask = self._positions = None
        if attention_mask is not None:
            self._mask = mark_ready(attention_mask.detach().bool())
        if position_ids is not None:
            self._positions = mark_ready(position_ids.detach().long())

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """h2 for h1, both (B, T, H), as the stock model's loop expects a layer's answer.

        Raises:
            TrunkError: the trunk refused or is gone.
            ModelError: gradients through a filled key-value cache, or in an evaluation session.
        """
        tokens = hidden_states.shape[1]
        cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
        keep_graph = self.keeps_graph(hidden_states)
        use: CacheUse | None = None
        if cache is not None:
            use = self._caches.use(cache, tokens, kept=not keep_graph)
            self._caches.drop_dead(self.transport)
        request, context = self.next_request(hidden_states, keep_graph=keep_graph, cache=use)
        if keep_graph:
            anchor = torch.empty(0, requires_grad=True)
            output: Tensor = Exchange.apply(  # type: ignore[no-untyped-call]
                anchor, hidden_states, self.transport, self.border, request, context
            )
        else:
            answer = self.transport.forward(request)
            with self.transport.waits.waiting():
                output = self.border.incoming("h2", answer.result(), context)
        return super().forward(output, *args, **kwargs)

    def next_request(
        self, hidden: Tensor, *, keep_graph: bool, cache: CacheUse | None = None
    ) -> tuple[ForwardRequest, TransformContext]:
        """The request for h1 of the next microbatch, with what the stock model was called with,
        and the context in which its further tensors leave and enter.

        Args:
            hidden: h1, (B, T, H).
            keep_graph: Whether a backward pass will follow, see `keeps_graph`.
            cache: The key-value cache that the pass extends.

        Raises:
            TransformError: a transform of the session failed.
        """
        context = self.border.context(
            hidden, step=self.steps, microbatch=self._microbatches, attention_mask=self._mask
        )
        request = ForwardRequest(
            step=self.steps,
            microbatch=self._microbatches,
            hidden=self.border.outgoing("h1", hidden, context),
            attention_mask=self._mask,
            position_ids=self._positions,
            keep_graph=keep_graph,
            dropout=self.training,
            cache=cache,
        )
        self._microbatches += 1
        return request, context

    def finish(self) -> SessionSummary:
        """Declare the session complete and wait for the trunk's word."""
        return self.transport.finish()

    def keeps_graph(self, hidden: Tensor) -> bool:
        """Whether there will be a backward pass through the trunk for h1.

        Raises:
            ModelError: gradients are asked for in an evaluation session.
        """
        spec = self.transport.spec
        if not torch.is_grad_enabled():
            return False
        if spec.purpose == "train":
            return hidden.requires_grad or spec.trunk_adapters != "frozen"
        if hidden.requires_grad:
            raise ModelError(
                "this session is for evaluation: call the model under torch.no_grad(), or open a "
                "training session"
            )
        return False


def find_remote(model: torch.nn.Module) -> RemoteTrunk:
    """The remote trunk of a client model.

    Raises:
        ModelError: no trunk is attached.
    """
    for module in model.modules():
        if isinstance(module, RemoteTrunk):
            return module
    raise ModelError("no trunk is attached to this model: call attach_trunk(model, transport)")
