"""The trunk's part of the client model's adapter, as the silo tells it what PEFT was told."""

import json
import logging
import secrets
import weakref
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.adapters.client_adapter import (
    ValueWatch,
    begun_scalings,
    check_held,
    is_copy,
    named,
    read_scalings,
    read_traces,
    tuner_layers,
)
from flower_split.adapters.plan import ADAPTER
from flower_split.adapters.plan_check import check_plan
from flower_split.errors import AdapterError, WireError
from flower_split.remote.loading import check_loaded
from flower_split.remote.silo_layers import SiloLayers
from flower_split.segments import Cuts, find_layers, layer_index
from flower_split.transport.messages import AdapterCall, AdapterReply, AdapterUse

if TYPE_CHECKING:
    from flower_split.transport.base import Transport

logger = logging.getLogger(__name__)

_TAG_BYTES = 32
"""A snapshot's tag as a tensor: of a shape that no adapter tensor has, so that a whole model
refuses it."""


class TrunkAdapter:
    """Has the trunk's adapter follow the client model's.

    Args:
        model: The client model, as PEFT wraps it in place.
        transport: The session.
        trained: Names of the silo's adapter tensors that the session trains; None for all.

    Raises:
        AdapterError: the client model's adapter is not the one that the session was opened with.
    """

    def __init__(
        self, model: nn.Module, transport: "Transport", trained: Collection[str] | None = None
    ) -> None:
        self._model = weakref.ref(model)
        self._transport = transport
        self._trained = None if trained is None else frozenset(trained)
        self._values = ValueWatch()
        self._layers = SiloLayers(self.stock, transport.spec)
        self.spec = transport.spec
        """The session's."""
        self._copies: dict[str, ValueWatch] = {}
        self._active: tuple[str, ...] = ()
        self._scalings: Mapping[tuple[str, int], float] = {}
        self._begun = False
        self._steps_with: weakref.ref[object] | None = None
        self._snapshot: bytes | None = None
        """The tag of the trunk's part as it is now."""
        self.is_there = transport.spec.trunk_adapters != "frozen"
        """Whether the trunk has an adapter in this session."""
        self.is_shared = transport.spec.trunk_adapters == "shared"
        """Whether all silos' sessions step one."""
        if self.is_there and tuner_layers(model):
            self._begin()
        elif transport.spec.loaded_adapter:
            self._values.note(named(model, ADAPTER))

    @property
    def model(self) -> nn.Module:
        """The client model."""
        model = self._model()
        if model is None:
            raise AdapterError("the client model of this trunk is gone")
        return model

    @cached_property
    def held(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name in the uncut model and shape of every tensor of the trunk's part."""
        held = self.call(AdapterCall(action="list")).held
        check_held([name for name, _ in held], self._trunks_modules())
        return held

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the modules of the uncut model that have an adapter in the session."""
        if not self.is_there:
            return ()
        return (*(self.shown.get("modules") or ()), *(self.shown.get("copies") or ()))

    @cached_property
    def shown(self) -> Mapping[str, Any]:
        """The session's plan as the handshake shows it; empty without one."""
        return dict(json.loads(self._transport.spec.adapter or "{}"))

    @property
    def is_wrapped(self) -> bool:
        """Whether the client model has layers with adapters."""
        return bool(tuner_layers(self.model))

    def use(self) -> AdapterUse:
        """With which adapter the trunk must compute the next pass.

        Raises:
            AdapterError: the client model computes in a way that the trunk cannot follow.
            ModelError: a hook waits on a layer of the trunk's.
        """
        model = self.model
        self._layers.check()
        if self._transport.spec.loaded_adapter:
            return self._use_of_loaded()
        if not self.is_there:
            return AdapterUse()
        if not tuner_layers(model):
            if self._begun or self._expects_layers():
                raise AdapterError(
                    "the client model has no adapter, and the session's trunk has one: it was "
                    "unloaded, or not wrapped yet. Wrap it with flower_split.wrap(client_model, "
                    "plan), or open a session with a frozen trunk"
                )
            return AdapterUse()
        if not self._begun:
            self._begin()
        self.check_unchanged()
        traces = read_traces(model, self._scalings)
        if not traces.active:
            return AdapterUse(disabled=True)
        if traces.active == self._active:
            return AdapterUse(scale=traces.scale)
        return AdapterUse(copy=self._copy_of(traces.active))

    def _use_of_loaded(self) -> AdapterUse:
        """The same for a trained adapter that both ends have loaded."""
        if not tuner_layers(self.model):  # prompts alone, which are the silo's
            return AdapterUse()
        if not self._begun:
            self._active = read_traces(self.model, {}).active
            self._scalings = begun_scalings(self.model, *self._active)
            self._begun = True
        now = read_traces(self.model, {}).active
        if not now:
            return AdapterUse(disabled=True)
        same = read_scalings(self.model, *self._active) == self._scalings
        if now != self._active or not same:
            raise AdapterError(
                f"the adapter {', '.join(now)} is active, with another scale or other than the one "
                "that both ends have loaded: load it with flower_split.load_adapter on both"
            )
        if changed := self._values.changed(named(self.model, ADAPTER)):
            raise AdapterError(
                f"{changed[0]} of the adapter that both ends have loaded was changed, and the "
                "trunk's part was not: train in a session of a plan, or load another adapter"
            )
        return AdapterUse()

    def trains(self) -> bool:
        """Whether a backward pass now trains the adapter.

        Raises:
            AdapterError: a part of it was frozen, or freed, that the trunk does not know of.
        """
        if not self.is_there:
            return False
        own = named(self.model, ADAPTER)
        free = {name for name, tensor in own.items() if tensor.requires_grad}
        expected = own.keys() if self._trained is None else own.keys() & self._trained
        if own and not free:
            return False
        if free != set(expected):
            differing = sorted(free ^ set(expected))
            raise AdapterError(
                f"{len(differing)} tensors of the silo's adapter (first: {differing[0]}) were "
                "frozen or set free by requires_grad, and the trunk's were not. Leave them as the "
                "session set them, or freeze all of them"
            )
        return True

    def trained(self) -> dict[str, nn.Parameter]:
        """The silo's adapter tensors that require gradients."""
        held = named(self.model, ADAPTER)
        return {name: tensor for name, tensor in held.items() if tensor.requires_grad}

    def silo_is_changed(self) -> bool:
        """Whether the silo's tensors are other than they were when both were last alike."""
        return bool(self._values.changed(named(self.model, ADAPTER)))

    def is_stepped_with(self, optimizer: object) -> None:
        """The trunk's half of the optimizer's state is that of `optimizer` from now on."""
        self._steps_with = weakref.ref(optimizer)

    def check_steps_with(self, optimizer: object) -> None:
        """Raise `AdapterError` where the trunk's half of the state is another optimizer's."""
        if self.is_there and self._steps_with not in (None, weakref.ref(optimizer)):
            raise AdapterError(
                "the trunk's half of the optimizer's state is that of another SplitAdamW of this "
                "session, or of the session before: go on with that one (session.optimizer in a "
                "ClientApp), load its state_dict into the new one, or open a new session"
            )

    def note_step(self) -> None:
        """Both sides have changed the adapter alike."""
        self._snapshot = None
        self._values.note(named(self.model, ADAPTER))

    def check_loaded(self, given: Collection[str], *, has_names: bool) -> None:
        """Raise `AdapterError` unless `given` is what the trunk can take; see `check_loaded`."""
        held = [name for name, _ in self.held] if self.is_there else None
        check_loaded(given, held, has_names=has_names)

    def note_loaded(self, given: Mapping[str, Tensor]) -> None:
        """Give the trunk what was loaded into the client model under its layers' names.

        Args:
            given: Adapter tensors, or tags of a snapshot in their places, by names of the file.

        Raises:
            AdapterError: the trunk does not take them.
        """
        tags = {tag for tag in map(_read_tag, given.values()) if tag is not None}
        if len(tags) == 1:
            self.call(AdapterCall(action="restore", name=tags.pop()))
        elif tags:
            raise AdapterError("a state of several snapshots of the trunk cannot be restored")
        else:
            self.write([given[name] for name, _ in self.held])
        self.note_step()

    def saved(self) -> dict[str, Tensor]:
        """What stands for the trunk's part in a saved state, by names of the file.

        Its values, where the trunk gives them; else the tag of a snapshot that it has taken now.

        Raises:
            AdapterError: the silo's tensors were changed, and the trunk's were not.
        """
        self.check_unchanged()
        if self._transport.limits.max_adapter_elements:
            return self.read()
        if self._snapshot is None:
            tag = secrets.token_bytes(_TAG_BYTES)
            self.call(AdapterCall(action="snapshot", name=tag.hex()))
            self._snapshot = tag
        tag = self._snapshot
        _warn_of_parts()
        stand_in = torch.frombuffer(bytearray(tag), dtype=torch.uint8)
        return {name: stand_in.clone() for name, _ in self.held}

    def read(self) -> dict[str, Tensor]:
        """The trunk's part, float32, by names of the file.

        Raises:
            AdapterError: the trunk does not give it.
        """
        self._check_given()
        tensors = self.call(AdapterCall(action="read")).tensors
        shapes = [shape for _, shape in self.held]
        if [tuple(tensor.shape) for tensor in tensors] != shapes:
            raise WireError("the trunk gave other tensors than its adapter has")
        return {name: t for (name, _), t in zip(self.held, tensors, strict=True)}

    def write(self, tensors: Collection[Tensor]) -> None:
        """Overwrite the trunk's part with `tensors`, in the order of `held`.

        Raises:
            AdapterError: the trunk does not take it, or they do not fit.
        """
        self._check_given()
        for (name, shape), tensor in zip(self.held, tensors, strict=True):
            if tuple(tensor.shape) != shape:
                raise AdapterError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
            if not bool(torch.isfinite(tensor).all()):
                raise AdapterError(f"{name} has values that are not finite")
        sent = tuple(t.detach().to("cpu", torch.float32).contiguous() for t in tensors)
        self.call(AdapterCall(action="write", tensors=sent))

    def snapshot_moments(self) -> str:
        """Have the trunk keep its optimizer's state; the tag by which it is restored."""
        tag = secrets.token_hex(_TAG_BYTES)
        self.call(AdapterCall(action="snapshot_moments", name=tag))
        return tag

    def restore_moments(self, tag: str) -> None:
        """Have the trunk's optimizer go on from the snapshot `tag`."""
        self.call(AdapterCall(action="restore_moments", name=tag))

    def _begin(self) -> None:
        model = self.model
        check_plan(model, self._transport.spec.adapter, self.shown)
        layers = tuner_layers(model)
        self._active = tuple(layers[0][1].active_adapters)
        if self._active[:1] != (ADAPTER,):
            raise AdapterError(
                f"the client model's active adapter is {', '.join(self._active) or 'none'}; a "
                f"session begins with {ADAPTER!r}"
            )
        self._scalings = begun_scalings(model, *self._active)
        self._values.note(named(model, ADAPTER))
        self._begun = True

    def _trunks_modules(self) -> set[str]:
        spec, (path, _) = self._transport.spec, find_layers(self.stock)
        cuts = Cuts(
            bottom_layers=spec.bottom_layers,
            top_layers=spec.top_layers,
            num_layers=spec.num_layers,
        )
        return {name for name in self.modules if layer_index(name, path) in cuts.trunk_range}

    @property
    def stock(self) -> PreTrainedModel:
        """The stock model inside it."""
        return next(m for m in self.model.modules() if isinstance(m, PreTrainedModel))

    def _expects_layers(self) -> bool:
        return bool({name for name, _ in self.model.named_modules()} & set(self.modules))

    def check_unchanged(self) -> None:
        """Raise `AdapterError` where the silo's tensors were changed, and the trunk's were not."""
        if not (self.is_there and self._begun):
            return
        changed = self._values.changed(named(self.model, ADAPTER))
        if changed:
            raise AdapterError(
                f"{len(changed)} tensors of the silo's adapter (first: {changed[0]}) were changed, "
                "and the trunk's were not. Train with SplitAdamW, or attach_trunk(..., "
                "trunk_parameters=True) for any other optimizer; load a state before attach_trunk, "
                "or all of it with load_state_dict"
            )

    def _copy_of(self, active: tuple[str, ...]) -> str:
        """The name of the trunk's copy for the adapter that is active instead of its own."""
        name = active[0]
        if len(active) != 1 or len(self._active) != 1:
            raise AdapterError(
                f"the adapters {', '.join(active)} are active together, and the trunk has "
                f"{ADAPTER!r} alone: set_adapter({ADAPTER!r})"
            )
        watch = self._copies.get(name)
        tensors = named(self.model, name)
        if watch is None:
            if not is_copy(self.model, name):
                raise AdapterError(
                    f"the adapter {name!r} is active, of which the trunk has no part. It can "
                    f"follow an adapter that is a copy of {ADAPTER!r} when it is first used, such "
                    "as a reference model; others are trained in a session of their own"
                )
            watch = self._copies[name] = ValueWatch()
            watch.note(tensors)
            self.call(AdapterCall(action="copy", name=name))
        elif watch.changed(tensors):
            raise AdapterError(
                f"the adapter {name!r} was changed in the silo's layers after the trunk had "
                f"copied it: the trunk trains {ADAPTER!r} alone"
            )
        return name

    def _check_given(self) -> None:
        if not self._transport.limits.max_adapter_elements:
            raise AdapterError(
                "this trunk does not give its part of the adapter to silos, nor takes it from "
                "them. Its owner may: TrunkEngine(..., shares_adapter=True), or "
                "trunk.shares-adapter of a run"
            )

    def call(self, call: AdapterCall) -> AdapterReply:
        """The trunk's answer to `call`."""
        answer = self._transport.adapter(call)
        with self._transport.waits.waiting():
            return answer.result()


def _read_tag(tensor: Tensor) -> str | None:
    if tensor.dtype == torch.uint8 and tensor.shape == (_TAG_BYTES,):
        return bytes(tensor.tolist()).hex()
    return None


_warned = False


def _warn_of_parts() -> None:
    global _warned
    if not _warned:
        _warned = True
        logger.warning(
            "this trunk gives its part of the adapter to nobody: what was saved holds a tag of it "
            "and can be loaded into a client model of the same trunk alone"
        )
