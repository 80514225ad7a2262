"""The silo's layers as a session began: what is done to all of them is not done to the trunk's."""

import copy
import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from transformers import PreTrainedModel

from flower_split.adapters.client_adapter import (
    bare_module,
    base_modules_begun,
    tuner_layers,
    tuner_parts,
    tuner_settings,
)
from flower_split.devices import CastWatch, current_autocast
from flower_split.errors import ModelError
from flower_split.remote.layer_watch import HOOKS, check_hooks, hooks
from flower_split.segments import find_layers
from flower_split.segments.fingerprint import computing_fields
from flower_split.segments.watching import LayersAsCut, TensorSample
from flower_split.segments.watching.as_cut import plain_settings, shared_buffers
from flower_split.transport.messages import SessionSpec

_WHAT_WORKS = (
    "Change the whole model before it is cut, at both ends, or single layers, embeddings and head"
)


class SiloLayers:
    """Notices functions, factors, hooks and frozen weights that were changed in all layers.

    Args:
        model: The client model.
        spec: The session's.

    Raises:
        ModelError: the layers are others than they were then.
    """

    def __init__(self, model: PreTrainedModel, spec: SessionSpec) -> None:
        self._model = weakref.ref(model)
        self._spec = spec
        self._trunk = range(spec.bottom_layers, spec.num_layers - spec.top_layers)
        self._casts, self._version = CastWatch(), -1
        self._note(model)

    def _note(self, model: PreTrainedModel) -> None:
        self._wrapped = bool(tuner_layers(model))
        path, layers = find_layers(model)
        owner, _, self._place = path.rpartition(".")
        self._owner = weakref.ref(model.get_submodule(owner))
        self._layers = weakref.ref(layers)
        # Adapters that no layer of the trunk has are the silo's affair.
        alone = self._spec.trunk_adapters == "frozen" and not self._spec.loaded_adapter
        own = {i: [*_parts(one)] for i, one in enumerate(layers) if i not in self._trunk}
        as_cut: LayersAsCut | None = getattr(layers[self._trunk.start], "as_cut", None)
        if as_cut is not None:
            as_cut.check(model, own, begun=base_modules_begun(model))
        kinds: defaultdict[str, list[_Part]] = defaultdict(list)
        for index, layer in enumerate(layers):
            if index in self._trunk:
                continue
            for name, module in own[index]:
                kinds[name].append(_Part(module, hooks=bool(name)))
            for name, tuner in tuner_layers(layer):
                for inner, part in tuner_parts(tuner):
                    if inner and alone:
                        continue
                    kinds[f"the adapter of {name}{inner}"].append(_AdapterPart(part, alone=alone))
        self._kinds = dict(kinds)
        self._both = {
            name: _Buffers(module) if layers in module.modules() else _Part(module, buffers=True)
            for name, module in shared_buffers(model)
        }
        """What both parties have beside layers, such as rotary frequencies."""
        self._config = copy.deepcopy(computing_fields(model.config))

    def check(self) -> None:
        """Raise `ModelError` where something was changed that the trunk has, and was not there."""
        model, owner, layers = self._model(), self._owner(), self._layers()
        if model is None:
            return
        if layers is None or owner is None or owner._modules.get(self._place) is not layers:
            raise ModelError(
                f"the list of the client model's layers was replaced, and the trunk's was not. "
                f"{_WHAT_WORKS}"
            )
        self._check_casts(model)
        check_hooks(layers, self._spec)
        if not self._wrapped and tuner_layers(model):
            self._note(model)  # PEFT may have begun with what it took out of the weights
        if any(getattr(torch_modules, f"_global{kind}") for kind in HOOKS):
            raise ModelError(
                "hooks of all modules (torch.nn.modules.module.register_module_…) do not reach the "
                "trunk's layers: register them on the silo's modules"
            )
        parts = [part for kind in self._kinds.values() for part in kind]
        valued = _changed_values([*parts, *self._both.values()])
        for name, kind in self._kinds.items():
            if changed := _change_of_all(kind, values=valued):
                raise ModelError(
                    f"{changed} of {name or 'the layer'} was changed in all of the silo's layers, "
                    f"and the trunk's are as they were. {_WHAT_WORKS}"
                )
        for name, part in self._both.items():
            if changed := part.change(values=valued):
                raise ModelError(
                    f"{changed} of {name} was changed, and the trunk has its own. {_WHAT_WORKS}"
                )
        now, was = computing_fields(model.config), self._config
        if now != was:
            key = next(k for k in (*now, *was) if k not in now or now[k] != was.get(k, _Part))
            raise ModelError(
                f"{key} of the client model's config was changed, and the trunk's was not. "
                f"{_WHAT_WORKS}"
            )

    def _check_casts(self, model: PreTrainedModel) -> None:
        """Raise `ModelError` where the silo's half computes with the weights before a step."""
        if not current_autocast(model.device):
            return
        version = sum(p._version for p in model.parameters() if p.requires_grad)
        if version != self._version and self._casts.is_kept(model.device):
            raise ModelError(
                "weights were stepped or loaded inside an autocast context that is still open: "
                "torch goes on with what it has cast before, and the trunk does not. Open autocast "
                "around the forward pass alone, or with cache_enabled=False"
            )
        self._version = version
        self._casts.look(model.device)


class _Part:
    """A module as it was.

    Args:
        module: Of the stock model.
        hooks: Whether hooks are a change.
        buffers: Whether its buffers are looked at, and not its parameters alone.
    """

    def __init__(self, module: nn.Module, *, hooks: bool = True, buffers: bool = False) -> None:
        self._module = weakref.ref(module)
        self._hooks = hooks
        self._kind = type(module)
        self._forward = vars(module).get("forward")
        self._children = {n: weakref.ref(bare_module(m)) for n, m in module.named_children()}
        self._factors = plain_settings(module)
        tensors = {**module._parameters, **(module._buffers if buffers else {})}
        self.samples = {n: TensorSample(t) for n, t in tensors.items() if t is not None}

    def tensor(self, name: str) -> Tensor | None:
        """The one that stands where it stood."""
        module = self._module()
        if module is None:
            return None
        return module._parameters.get(name, module._buffers.get(name))

    def change(self, *, values: bool) -> str:
        """What is other than it was; empty for nothing.

        Args:
            values: Whether values of tensors are compared as well.
        """
        module = self._module()
        if module is None:
            return "the module"
        now = vars(module)
        if type(module) is not self._kind:
            return "the class"
        if now.get("forward") is not self._forward:
            return "the method forward"
        for name, value in self._factors.items():
            if now.get(name) != value:
                return name
        for name, held in self._children.items():
            child = module._modules.get(name)
            if child is None or bare_module(child) is not held():
                return f"the module {name}"
            if child is not held() and (kind := _hooked(child)):
                return f"a hook ({kind}) on {name}"
        for name, sample in self.samples.items():
            tensor = self.tensor(name)
            if tensor is None or (values and sample.is_other(tensor)):
                return name
        kind = _hooked(module) if self._hooks else ""
        return f"a hook ({kind})" if kind else ""


class _Buffers(_Part):
    """The buffers of a module that has the layers in it: the rest of it is the silo's.

    Args:
        module: Of the stock model.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, hooks=False, buffers=True)
        self._children = {}


class _AdapterPart(_Part):
    """What PEFT has put around or beside a module of a layer, as it was, but for its tensors.

    Those are watched elsewhere, as are its dropout and, of LoRA, its scale; and adapters may come
    and go.

    Args:
        module: A layer of PEFT's, or a part of one.
        alone: Whether the trunk has no adapter, and what this one computes is no change.
    """

    def __init__(self, module: nn.Module, *, alone: bool) -> None:
        super().__init__(module)
        self.samples, self._children = {}, {}
        self._settings = {} if alone else tuner_settings(module)

    def change(self, *, values: bool) -> str:
        """What is other than it was; empty for nothing."""
        module = self._module()
        found = super().change(values=values)
        if found or module is None:
            return found
        now = tuner_settings(module)
        return next((name for name, was in self._settings.items() if now.get(name) != was), "")


def _change_of_all(kind: list[_Part], *, values: bool) -> str:
    """What was changed in the last of `kind`, where all of them were changed; empty for nothing."""
    changed = ""
    for part in kind:  # most often the first is as it was
        changed = part.change(values=values)
        if not changed:
            break
    return changed


def _changed_values(parts: list[_Part]) -> bool:
    """Whether any may have other values: one look at all of them, whatever the device."""
    now: defaultdict[Any, list[Tensor]] = defaultdict(list)
    then: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for part in parts:
        for name, sample in part.samples.items():
            tensor = part.tensor(name)
            if tensor is None or tensor.requires_grad or sample.seen is None:
                continue
            view = sample.view(tensor)
            if view is None or (view.dtype, view.device) != (sample.seen.dtype, sample.seen.device):
                return True
            now[view.dtype, view.device].append(view)
            then[view.dtype, view.device].append(sample.seen)
    return not all(torch.equal(torch.cat(now[key]), torch.cat(then[key])) for key in now)


def _parts(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names in the stock layer and modules of it, without what PEFT has put around them."""
    waiting = [("", bare_module(layer))]
    while waiting:
        name, module = waiting.pop()
        yield name, module
        waiting += [
            (f"{name}.{child}".lstrip("."), bare_module(part))
            for child, part in module.named_children()
        ]


def _hooked(module: nn.Module) -> str:
    """The kind of a hook but those of PEFT, for `adapter_names`, and of transformers."""
    for kind in HOOKS:
        for hook in hooks(module, kind):
            if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                return kind.strip("_")
    return ""
