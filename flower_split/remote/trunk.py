"""The remote trunk: the layer of the client model that stands for all the trunk's layers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from flower_split.adapters.plan import PEFT_PREFIX
from flower_split.adapters.stand_in import AdapterStandIn, refuse_merging
from flower_split.adapters.state import weights_dtype, with_adapter
from flower_split.devices import current_autocast, mark_ready
from flower_split.errors import AdapterError, ModelError
from flower_split.privacy import SiloClipping
from flower_split.remote.border import SiloBorder
from flower_split.remote.caching import CacheLedger
from flower_split.remote.dropout_watch import DropoutWatch
from flower_split.remote.exchange import Exchange
from flower_split.remote.gradient_mirror import GradientChange, GradientMirror, weakly
from flower_split.remote.late_wrapping import LateWrapping
from flower_split.remote.loading import take_adapters, take_given
from flower_split.remote.ranks import SessionRanks, opened, session_ranks
from flower_split.remote.trunk_adapter import TrunkAdapter
from flower_split.remote.trunk_parameters import TrunkParameters
from flower_split.segments import Cuts, Family, PassThrough, TrunkSlot, find_layers, refuse_copy
from flower_split.segments.prefix import find_prefix
from flower_split.segments.randomness import others_draw
from flower_split.segments.refusals import context_length
from flower_split.transforms import TransformContext
from flower_split.transport.base import Transport
from flower_split.transport.messages import AdapterGrad, CacheUse, ForwardRequest, SessionSummary


class RemoteTrunk(AdapterStandIn):
    """Sends what the bottom computed to the trunk and returns what the trunk answered.

    Made by `attach_trunk`. Requests carry the 2-D attention mask and the position ids with which
    the stock model was called, because the trunk needs them to compute as the uncut model does.

    Args:
        slot: The place in the client model.
    """

    transport: Transport
    border: SiloBorder
    adapter: TrunkAdapter
    late: LateWrapping

    def __init__(self, slot: "TrunkSlot | RemoteTrunk") -> None:
        super().__init__(slot)
        self.family: Family = slot.family
        self.cuts: Cuts = slot.cuts
        self.fingerprint: str = slot.fingerprint
        self.loaded_adapter: str = slot.loaded_adapter
        self.as_cut: Any = slot.as_cut
        self.trunk_gradient = nn.Parameter(torch.zeros(3))
        """Its own gradient stands for that of the trunk's adapter; see `GradientMirror`."""
        self.own: TrunkParameters | None = None
        """The trunk's adapter as parameters of the client model, where that was asked for."""
        self.measures = False
        """Whether the trunk tells of the pass that is under way by how much it adds to its own."""
        self._mirror = GradientMirror(self.trunk_gradient, weakly(self._discard))
        self.trunk_gradient.requires_grad_(False)
        self._mask: Tensor | None = None
        self._positions: Tensor | None = None
        self.ranks: SessionRanks | None = None  # AdaLoRA's, where the session has it
        self.clipping: SiloClipping | None = None  # DP-SGD's, which an optimizer puts here

    def connect(
        self,
        transport: Transport,
        model: PreTrainedModel,
        *,
        outer: nn.Module,
        trained: Collection[str] | None = None,
        trunk_parameters: bool = False,
    ) -> None:
        """Use `transport` from now on; its session's counts start at zero.

        Args:
            transport: An open session.
            model: The client model.
            outer: The same as PEFT has wrapped it.
            trained: Names of the silo's adapter tensors that the session trains; None for all.
            trunk_parameters: Whether the trunk's adapter becomes parameters of the client model.

        Raises:
            HandshakeError: a transform of the session is of no use here.
            AdapterError: the client model's adapter is not the session's.
        """
        self.border = SiloBorder(transport.spec)
        self._context_length = context_length(model.config)
        self.adapter = TrunkAdapter(model, transport, trained)
        self._dropout = DropoutWatch(model)
        self.transport = transport
        refuse_merging(outer)
        self.ranks = session_ranks(outer, self, self.adapter, self.gradient_change)
        self.steps = self._microbatches = self._backwards = 0
        self._caches = CacheLedger(self.cuts.trunk_range)
        self._mirror.forget()
        self.trunk_gradient.grad = None
        self.trunk_gradient.data = self.trunk_gradient.data.float().zero_()
        self.correct: Callable[[], None] | None = None  # what a strategy adds to gradients
        self.own_autocast = "off"  # dtype of one that is the silo's alone
        self._path, layers = find_layers(model)
        held = {index: cast("PassThrough", layers[index]) for index in self.cuts.trunk_range}
        loaded = take_adapters(held, self._path, getattr(model, "peft_config", ()))
        self._others: dict[int, AdapterStandIn] = {}
        for index, layer in held.items():
            place: AdapterStandIn = self
            if index != self.cuts.bottom_layers:
                place = layer if isinstance(layer, AdapterStandIn) else AdapterStandIn(layer)
                layers[index] = self._others[index] = place
            at = f"{self._path}.{index}."
            place.lay_out(m.removeprefix(at) for m in self.adapter.modules if m.startswith(at))
        if self.own is not None:
            self.own.remove()
            self.own = None
        if trunk_parameters:
            self.own = TrunkParameters(self.adapter, self, trained=trained)
        self._hand_on(*loaded)

    __deepcopy__ = refuse_copy
    __reduce_ex__ = refuse_copy

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        self._mask = None if attention_mask is None else mark_ready(attention_mask.detach().bool())
        self._positions = None if position_ids is None else mark_ready(position_ids.detach().long())

    # It waits for the trunk, of which nothing can be compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @others_draw
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """h2 for h1, both (B, T, H), as the stock model's loop expects a layer's answer.

        Raises:
            TrunkError: the trunk refused or is gone.
            ModelError: gradients through a filled key-value cache, or in an evaluation session.
        """
        tokens = hidden_states.shape[1]
        cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
        prefix = None
        if self.transport.spec.prefix_tokens:
            prefix = find_prefix(cache, self.cuts.trunk_range, self.adapter.stock)
        keep_graph = self.keeps_graph(hidden_states, prefix)
        use: CacheUse | None = None
        if cache is not None:
            use = self._caches.use(cache, tokens, kept=not keep_graph, begins=prefix is not None)
            self._caches.drop_dead(self.transport)
        request, context = self.next_request(
            hidden_states, keep_graph=keep_graph, cache=use, prefix=prefix
        )
        if keep_graph:
            self.measures = self.adapter.is_there and self.own is None
            own = () if self.own is None else self.own.parameters
            self.trunk_gradient.requires_grad_(self.adapter.is_there and not own)
            output: Any = Exchange.apply(  # type: ignore[no-untyped-call]
                self.trunk_gradient, hidden_states, self, request, context, prefix, *own
            )
            if self.ranks is not None:
                output, term = output
                self.ranks.note(term)
        else:
            answer = self.transport.forward(request)
            with self.transport.waits.waiting():
                output = self.border.incoming("h2", opened(self.ranks, answer.result()), context)
        return super().forward(output, *args, **kwargs)

    def next_request(
        self,
        hidden: Tensor,
        *,
        keep_graph: bool,
        cache: CacheUse | None = None,
        prefix: Tensor | None = None,
    ) -> tuple[ForwardRequest, TransformContext]:
        """The request for h1 of the next microbatch, with what the stock model was called with,
        and the context in which its further tensors leave and enter.

        Args:
            hidden: h1, (B, T, H).
            keep_graph: Whether a backward pass will follow, see `keeps_graph`.
            cache: The key-value cache that the pass extends.
            prefix: What the trunk's layers begin with, (2 L R, V, W).

        Raises:
            TransformError: a transform of the session failed.
            ModelError: the model's weights were converted, or a text is longer than its context.
        """
        context = self.border.context(
            hidden, step=self.steps, microbatch=self._microbatches, attention_mask=self._mask
        )
        self.border.check_dtype(weights_dtype(self.adapter.model))
        if bool(self.trunk_gradient.any()):
            raise AdapterError(
                "an optimizer has changed trunk_gradient, which stands for the trunk's gradient "
                "and is no weight. Train with SplitAdamW, or attach_trunk(..., "
                "trunk_parameters=True) for any other optimizer"
            )
        self._mirror.check_place(self.trunk_gradient)
        self.take_loaded()
        if self.own is not None:
            self.own.push()
        use = self.adapter.use()
        if keep_graph:
            self._mirror.follow_zeroing()
        if keep_graph and use.copy:
            raise AdapterError(
                f"the adapter {use.copy!r} is active, a copy that the trunk does not train: call "
                "the model under torch.no_grad()"
            )
        request = ForwardRequest(
            step=self.steps,
            microbatch=self._microbatches,
            hidden=self.border.outgoing("h1", hidden, context),
            attention_mask=self._mask,
            position_ids=self._positions,
            prefix=None if prefix is None else self.border.prefix(prefix, context),
            keep_graph=keep_graph,
            dropout=self.training and self._dropout.is_on(),
            cache=cache,
            adapter=use,
            autocast=current_autocast(hidden.device, but=self.own_autocast),
        )
        self.border.check_length(request, self._context_length)
        self._microbatches += 1
        return request, context

    def finish(self) -> SessionSummary:
        """Declare the session complete and wait for the trunk's word.

        Raises:
            AdapterError: the trunk was trained without a step, or the silo's part with one that
                the trunk did not take.
        """
        self.take_loaded()
        self.check_stepped()
        if self.own is not None:
            self.own.push()
        self.adapter.check_unchanged()
        if self.clipping is not None:
            self.clipping.check_unchanged()
        return self.transport.finish()

    def check_stepped(self) -> None:
        """Raise `AdapterError` where the trunk got gradients, and no step was ever taken."""
        if self._backwards and not self.steps and self._mirror.is_there:
            raise AdapterError(
                f"the trunk got the gradients of {self._backwards} microbatches and no optimizer "
                "step: its adapter is untrained. Train with SplitAdamW (session.optimizer in a "
                "ClientApp), or attach_trunk(..., trunk_parameters=True) for any other optimizer"
            )

    def follow_gradient(self) -> None:
        """Have the trunk's gradient follow what was done to the silo's since the last pass.

        Raises:
            AdapterError: it was changed in the midst of a step.
        """
        if self.gradient_change() != GradientChange():
            raise AdapterError(
                "gradients were scaled or clipped, and then added to by another backward pass: "
                "the trunk follows only what is done after the last one of a step"
            )

    def gradient_change(self) -> GradientChange:
        """What was done to the gradients of the step, for the trunk to do alike."""
        self._mirror.follow_zeroing()
        return self._mirror.change()

    @property
    def largest_gradient(self) -> float | None:
        """Magnitude of the largest element of the trunk's gradient; None where unmeasured."""
        return self._mirror.largest

    @property
    def gradient_number(self) -> int:
        """Counts the gradients of the trunk: another one begins when one was zeroed."""
        return self._mirror.number

    def told_gradient(self, norm: float, largest: float) -> Tensor:
        """What autograd has to add to the mirror for the trunk's gradient of these measures."""
        self._backwards += 1
        return self._mirror.increment(norm, largest)

    def measure_gradient(self, norm: float, largest: float) -> None:
        """The same outside of autograd's own passes."""
        self._backwards += 1
        self._mirror.place(norm, largest)

    def added_gradient(self) -> None:
        """The trunk has added a gradient to those of the step, unmeasured."""
        self._backwards += 1
        self._mirror.added()

    def forget_gradient(self, *, zeros: bool) -> None:
        """The silo's gradients were zeroed: so are the trunk's."""
        if self._mirror.is_there:
            self._discard(zeros)
            if zeros and self._mirror.is_measured:
                self._mirror.told(0.0, 0.0)
            elif not zeros:
                self._mirror.forget()

    def stepped(self) -> None:
        """Both sides have taken a step; the trunk keeps its gradient as the silo does."""
        self.steps += 1
        grad = self.trunk_gradient.grad
        if grad is not None and self._mirror.is_measured:
            self._mirror.take(grad)
        self.adapter.note_step()

    def own_parameters(self, kept: AdapterGrad) -> Sequence[Tensor]:
        """The adapter's parameters that are given their gradients here."""
        return self.own.parameters if self.own is not None and kept == "return" else ()

    def own_gradients(self, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The adapter's gradients for autograd, where its tensors are parameters here."""
        return () if self.own is None else self.own.gradients(gradients)

    def take_loaded(self) -> None:
        """Give the trunk what was loaded into the client model under its layers' names.

        Raises:
            AdapterError: it cannot take it.
        """
        layers: dict[int, AdapterStandIn] = {self.cuts.bottom_layers: self, **self._others}
        self._hand_on(*take_given(layers, self._path))

    def _hand_on(self, given: Mapping[str, Tensor], has_names: bool) -> None:
        if given:
            self.adapter.check_loaded(given, has_names=has_names)
            if self.own is not None:
                self.own.load(given)
            else:
                self.adapter.note_loaded(given)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Put what stands for the trunk's part of the adapter into a state of the client model."""
        if not (self.adapter.is_there and self.adapter.is_wrapped):
            return
        if self.ranks is not None:
            self.ranks.refuse_saving()
        self.take_loaded()
        outer = prefix.removesuffix(f"{self.cuts.bottom_layers}.")
        saved = self.adapter.saved() if self.own is None else self.own.saved(keep_vars=keep_vars)
        for name, tensor in saved.items():
            inner = name.removeprefix(f"{PEFT_PREFIX}{self._path}.")
            destination[outer + with_adapter(inner)] = tensor

    def _discard(self, zeros: bool) -> None:
        self.transport.discard(zeros=zeros)

    def keeps_graph(self, hidden: Tensor, prefix: Tensor | None = None) -> bool:
        """Whether there will be a backward pass through the trunk for h1 and a prefix.

        Raises:
            ModelError: gradients are asked for in an evaluation session.
        """
        spec = self.transport.spec
        if not torch.is_grad_enabled():
            return False
        wanted = hidden.requires_grad or (prefix is not None and prefix.requires_grad)
        if spec.purpose == "train":
            return wanted or spec.trunk_adapters != "frozen"
        if wanted:
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
