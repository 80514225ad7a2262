"""The trunk: the stock model with only its middle layers."""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from flower_split.devices import autocasting
from flower_split.errors import CutError
from flower_split.segments.cuts import Cuts
from flower_split.segments.layers import find_layers
from flower_split.segments.loading.quantization import beside_weights
from flower_split.segments.pass_through import PassThrough
from flower_split.segments.proving import family_of
from flower_split.segments.randomness import LayerDraws
from flower_split.segments.segment import Segment, without_unknown


class Trunk(Segment):
    """Layers k … n-m-1 of a stock model, computing exactly what they compute in it.

    Args:
        model: The stock `…ForCausalLM` with stand-ins for everything but the trunk's layers.
        cuts: Which layers those are.
        fingerprint: Of the uncut model.
    """

    def __init__(self, model: PreTrainedModel, cuts: Cuts, fingerprint: str) -> None:
        held = cuts.trunk_range
        super().__init__(model, cuts, fingerprint, enters=held.start, leaves=held.stop - 1)
        taken = inspect.signature(model.base_model.forward).parameters
        # State-space models call it otherwise.
        named = "cache_params" in taken and "past_key_values" not in taken
        self._cache_argument = "cache_params" if named else "past_key_values"
        optional = ("position_ids", "use_cache", self._cache_argument)
        self._known = frozenset(without_unknown(model.base_model, **dict.fromkeys(optional)))
        self.is_followed = False
        """Whether further layers of the same trunk are given what it computes, in its own dtype."""
        self.leaves_in: torch.dtype | None = None
        """Dtype of what it computes; None for that of what it is given."""
        self.autocast: torch.dtype | None = None
        """Dtype of matrix products, whatever the weights' is and whatever the caller's autocast."""
        self.loaded_adapter = ""
        """SHA-256 of a trained adapter that is part of it, hexadecimal; empty for none."""
        self.without_adapter: Callable[[], AbstractContextManager[object]] = nullcontext
        """A context in which it computes without that one."""

    def with_same_weights(self) -> Self:
        """A trunk with modules of its own whose weights are this one's, and no copies of them.

        What wraps its modules, or computes with them, changes nothing of this trunk and of others
        that were made of it. Buffers are its own: stock code may write to them. To be asked of a
        trunk that is frozen, and wrapped with nothing.
        """
        shared = [*self.parameters(), *beside_weights(self)]
        return copy.deepcopy(self, {id(one): one for one in shared})

    def narrowed(self, cuts: Cuts) -> "Trunk":
        """A trunk of fewer of these layers, with the same weights; see `with_same_weights`.

        Args:
            cuts: Of the same model; the silo holds as many layers as here, or more.

        Raises:
            CutError: layers are missing here, or the cuts are another model's.
        """
        held, wanted = self.cuts.trunk_range, cuts.trunk_range
        if cuts.num_layers != self.cuts.num_layers or not (
            held.start <= wanted.start and wanted.stop <= held.stop
        ):
            raise CutError(
                f"this trunk holds the layers {held.start} … {held.stop - 1} of "
                f"{self.cuts.num_layers}, and {wanted.start} … {wanted.stop - 1} of "
                f"{cuts.num_layers} are asked for"
            )
        model = self.with_same_weights().model  # whose hooks obey no other segment than the copy
        returns_tuple = family_of(model.config).returns_tuple
        _, layers = find_layers(model)
        for index in held:
            if index not in wanted:
                layers[index] = PassThrough(layers[index], returns_tuple=returns_tuple)
        made = Trunk(model, cuts, self.fingerprint)
        made.autocast, made.loaded_adapter = self.autocast, self.loaded_adapter
        made.training = self.training  # of the layers it is copied already
        return made

    def forward(
        self,
        hidden: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        autocast: torch.dtype | None = None,
        draws: LayerDraws | None = None,
    ) -> Tensor:
        """h2 for h1, both (B, T, H) of the model's dtype, unless `is_followed`.

        Args:
            hidden: h1.
            attention_mask: (B, S) as the uncut model would be given it.
            position_ids: (B, T) or (1, T) as the uncut model would be given them.
            past_key_values: Key-value cache that the pass extends.
            autocast: Dtype of matrix products, where the trunk has none of its own.
            draws: Where other layers of the same trunk draw random numbers too; where these have
                stopped is noted there.

        Raises:
            ModelError: the stock model did not run the trunk's layers.
        """
        with autocasting(hidden.device, self.autocast or autocast):
            call = {
                "position_ids": position_ids,
                "use_cache": past_key_values is not None,
                self._cache_argument: past_key_values,
            }
            output = self._through(
                hidden,
                draws,
                inputs_embeds=hidden.detach(),
                attention_mask=attention_mask,
                **{name: value for name, value in call.items() if name in self._known},
            )
        return output if self.is_followed else output.to(self.leaves_in or hidden.dtype)
