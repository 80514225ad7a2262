"""Modules that stand in a segment for what another party holds."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from flower_split.errors import ModelError
from flower_split.segments.cuts import Cuts
from flower_split.segments.families import Family
from flower_split.segments.layers import find_layers

_PLAIN = (str, int, float, bool, type(None))


class PassThrough(nn.Module):
    """Stands for a layer of another party: returns the hidden states it is given.

    Args:
        layer: The stock layer, or another stand-in, whose plain attributes (such as
            `attention_type`) the stock model's loop may read.
        returns_tuple: Whether the family's layers return a tuple; None takes it from `layer`.
    """

    returns_tuple: bool
    family: Family
    """Of the layer at the trunk's place only: the family's entry."""
    cuts: Cuts
    """Of the same layer only: where the model was cut."""

    def __init__(self, layer: nn.Module, *, returns_tuple: bool | None = None) -> None:
        super().__init__()
        self._given: dict[str, Tensor] = {}
        for name, value in vars(layer).items():
            if not name.startswith("_") and name != "training" and isinstance(value, _PLAIN):
                setattr(self, name, value)
        if returns_tuple is not None:
            self.returns_tuple = returns_tuple
        # While a model is made, stock code writes to parts of layers. Those have no weights yet.
        self._parts = {
            name: part
            for name, part in layer.named_children()
            if not isinstance(layer, PassThrough)
            and all(tensor.is_meta for tensor in part.state_dict(keep_vars=True).values())
        }
        self.train(layer.training)

    def __getattr__(self, name: str) -> Any:
        parts: Mapping[str, nn.Module] = self.__dict__.get("_parts", {})
        return parts[name] if name in parts else super().__getattr__(name)

    def take_given(self) -> dict[str, Tensor]:
        """The tensors that were loaded under this layer's name since the last call, by their names
        in the layer: they are the other party's."""
        given, self._given = self._given, {}
        return given

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Set aside what is for the layer of the other party, for whoever can give it to them."""
        own = {name for name, _ in self.named_parameters()}
        for name, tensor in state_dict.items():
            inner = name.removeprefix(prefix)
            if name.startswith(prefix) and inner not in own:
                self._given[inner] = tensor.detach().clone()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The hidden states (B, T, H), in the shape in which the family's layers return them."""
        return (hidden_states, None) if self.returns_tuple else hidden_states


class TrunkPlace(PassThrough):
    """The layer of a client model that stands for the trunk.

    Args:
        layer: The stock layer at index `cuts.bottom_layers`.
        family: The family's entry.
        cuts: Where the model was cut.
        fingerprint: Of the uncut model.
    """

    def __init__(self, layer: nn.Module, *, family: Family, cuts: Cuts, fingerprint: str) -> None:
        super().__init__(layer, returns_tuple=family.returns_tuple)
        self.family = family
        self.cuts = cuts
        self.fingerprint = fingerprint
        self.loaded_adapter = ""
        """SHA-256 of the trained adapter that the client model has loaded; empty for none."""
        self.fresh: tuple[str, ...] = ()
        """Names of the head's tensors that the checkpoint lacked, drawn at random."""
        self.as_cut: Any = None
        """`LayersAsCut` of the client model's layers; None where that is not known."""


class TrunkSlot(TrunkPlace):
    """The place in a client model where `attach_trunk` puts the remote trunk."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Refused: without the trunk the answer would be wrong."""
        raise ModelError("this model has no trunk yet: call attach_trunk(model, transport) first")


class Stub(nn.Module):
    """Stands for an embedding, norm, projection or head whose answer is thrown away.

    It only has to let the stock code go on: it returns the hidden states it is given, (B, T, H),
    or else a zero that broadcasts against anything.

    Args:
        module: What it stands for; the parts of it, which stock code asks a model for, get
            stand-ins of their own.
        dtype: Of the model; it and the device follow `.to()`.
    """

    like: Tensor

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        for name, part in module.named_children():
            self.add_module(name, Stub(part, dtype))
        # On the CPU also where the model is built on the meta device.
        zero = torch.zeros((), dtype=dtype, device="cpu")
        self.register_buffer("like", zero, persistent=False)

    @property
    def weight(self) -> Tensor:
        """A zero, which stock code may draw at random while a model is made."""
        return self.like

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first floating-point argument with three axes, or a zero without axes."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        for value in tensors:
            if value.is_floating_point() and value.dim() == 3:
                return value
        return self.like.new_zeros((), device=tensors[0].device if tensors else None)


OnCall = Callable[[Any, Any], None]

_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")
_KNOWN = frozenset(
    {
        *("attention_mask", "cache_params", "cache_position", "input_ids", "inputs_embeds"),
        *("labels", "logits_to_keep", "num_items_in_batch", "past_key_values", "position_ids"),
        *("return_dict", "token_type_ids", "use_cache", *_OUTPUTS),
    }
)
"""Arguments of stock models that the trunk is sent, or that its layers do not see."""
_PACKING = frozenset({"cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "seq_idx"})
"""Where packed texts begin, told to kernels that do not read it off the positions."""


def watch_calls(model: nn.Module, family: Family, on_call: OnCall) -> None:
    """Tell `on_call` the `attention_mask` and `position_ids` of every call of the stock model.

    They are those that the caller gave: what the stock code makes of them on the way to its layers
    it makes at the trunk too. A call that asks for what only the trunk has, or gives what the trunk
    is not sent, then raises a `ModelError`.

    Args:
        model: A client model, wrapped by PEFT or not.
        family: Its family's entry.
        on_call: Called with both before the stock code runs; None for what was not given.

    Raises:
        ModelError: `model` holds no stock model.
    """
    stock = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if stock is None:
        raise ModelError(f"this {type(model).__name__} holds no stock model")
    # The base model is told last, and is what the trunk calls; some heads pass it by.
    holder = _holder(stock)
    for called in dict.fromkeys((stock, stock.base_model, holder)):
        told = on_call if called in (stock, stock.base_model) else None
        watch = _Watch(called, family, told, reaches_layers=called is holder)
        called.register_forward_pre_hook(watch, with_kwargs=True)


def _holder(stock: PreTrainedModel) -> PreTrainedModel:
    """The innermost model that has the layers: what it is called with may reach them.

    What wraps it may take arguments of its own, as what TRL puts around a head does.
    """
    path, _ = find_layers(stock)
    inner = stock
    for length in range(1, path.count(".") + 1):
        module = stock.get_submodule(".".join(path.split(".")[:length]))
        if isinstance(module, PreTrainedModel):
            inner = module
    return inner


class _Watch:
    """The hook of `watch_calls`; a copy of the module, such as `Halves` makes, shares it."""

    def __init__(
        self, called: nn.Module, family: Family, on_call: OnCall | None, *, reaches_layers: bool
    ) -> None:
        self._signature = inspect.signature(called.forward)
        kinds = {p.kind: name for name, p in self._signature.parameters.items()}
        self._rest = kinds.get(inspect.Parameter.VAR_KEYWORD, "")
        self._family = family
        self._on_call = on_call
        self._reaches_layers = reaches_layers

    @torch.compiler.disable(  # type: ignore[untyped-decorator]
        reason="a model whose trunk is elsewhere is no single graph: compile it without fullgraph"
    )
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._signature.bind(*args, **kwargs).arguments
        call = {**call.pop(self._rest, {}), **call}
        _check_call(call, self._family)
        if self._reaches_layers:
            _check_known(call, module)
        if self._on_call is not None:
            self._on_call(call.get("attention_mask"), call.get("position_ids"))

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Watch":
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self)


def _check_call(call: Mapping[str, Any], family: Family) -> None:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise ModelError(
            "torch.func cannot transform a model whose trunk is elsewhere: call it outside of "
            "grad, vmap and the like, and use backward() or torch.autograd.grad"
        )
    if torch.autograd.forward_ad._current_level >= 0:
        raise ModelError(
            "forward-mode derivatives do not pass a trunk that is elsewhere: call the model "
            "outside of dual_level and jvp, and use backward() or torch.autograd.grad"
        )
    tracing: bool = torch._C._get_tracing_state() is not None
    if torch.compiler.is_exporting() or tracing or torch.onnx.is_in_onnx_export():
        raise ModelError(
            "a model whose trunk is elsewhere cannot be exported or traced (torch.export, "
            "torch.jit, ONNX): a graph would hold the answers of one pass. Export the whole "
            "model, into which flower-split export --merge writes the adapter"
        )
    positions = call.get("position_ids")
    if isinstance(positions, Tensor) and positions.is_floating_point():
        raise ModelError(f"position_ids are {positions.dtype}; the trunk takes whole numbers alone")
    for wanted in _OUTPUTS:
        if call.get(wanted):
            raise ModelError(f"{wanted} is not available: the trunk's layers are not here")
    if not family.caches and any(isinstance(value, Cache) for value in call.values()):
        raise ModelError(
            f"a cache of {family.model_type} cannot be filled by two parties: pass "
            "use_cache=False, to generate() too"
        )


def _check_known(call: Mapping[str, Any], called: nn.Module) -> None:
    for given in sorted(call.keys() - _KNOWN):
        if call[given] is None or (given in _PACKING and _ignores(called, given)):
            continue
        raise ModelError(
            f"{given} cannot be given: the trunk's layers would not have it"
            + (
                ". Pack texts without it, as TRL does with packing_strategy='wrapped' and without "
                "padding_free, or do not pack them"
                if given in _PACKING
                else ""
            )
        )


def _ignores(called: nn.Module, name: str) -> bool:
    """Whether the stock code computes the same with and without the argument `name`."""
    attention = getattr(getattr(called, "config", None), "_attn_implementation", None)
    return attention in ("eager", "sdpa") and name not in _source_of(type(called).__module__)


@cache
def _source_of(module: str) -> str:
    return inspect.getsource(sys.modules[module])


def refuse_copy(holder: object, *_: Any) -> NoReturn:
    """Stands for `__deepcopy__` and `__reduce_ex__` of what belongs to one trunk.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        "a client model with a trunk attached cannot be copied or pickled as a whole, as by "
        "copy.deepcopy, pickle and torch.save: it belongs to one open session. Copy or save it "
        "before attach_trunk. Of an attached one, save its tensors (state_dict), and for a second "
        "model, such as a reference, call load_client_model or split_model again, load_state_dict, "
        "and attach it to a session of its own"
    )
