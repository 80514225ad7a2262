"""The trunk's adapters: one set of trunk weights, and an adapter for every open session."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from flower_split.adapters.adalora.orthogonality import orthogonality
from flower_split.adapters.adalora.rank_allocation import TrunkAllocator
from flower_split.adapters.folding import add_folded, delete_adapter
from flower_split.adapters.mixing import RowMixer
from flower_split.adapters.notices import without_peft_notices
from flower_split.adapters.plan import AdapterPlan
from flower_split.adapters.rounds import AdapterRound
from flower_split.adapters.session_state import PersonalTensors
from flower_split.adapters.state import adapter_parameters, load_state, read_state
from flower_split.adapters.wrapping import wrap
from flower_split.errors import AdapterError
from flower_split.lowrank import Instructions, Scaling, plain_names
from flower_split.segments import Trunk
from flower_split.segments.randomness import numbers_aside

MASTER = "master"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Beneath:
    """A frozen adapter that lies beneath those of one or several sessions."""

    name: str
    parameters: Mapping[str, nn.Parameter]

    def is_of(self, state: Mapping[str, Tensor]) -> bool:
        """Whether it has the values of `state`."""
        return self.parameters.keys() == state.keys() and all(
            p.shape == state[n].shape and torch.equal(p.detach().to(state[n]), state[n])
            for n, p in self.parameters.items()
        )


class TrunkAdapters:
    """Named adapters on one trunk, one of them active at a time.

    The adapter `master` is always there: what a session starts from when nothing else is given,
    and what the sessions of a `shared` trunk have in common.

    Args:
        trunk: Its model is wrapped in place and its weights are frozen.
        plan: The whole model's adapter plan.

    Raises:
        AdapterError: the plan has no module among the trunk's layers, or trains their biases.
    """

    def __init__(self, trunk: Trunk, plan: AdapterPlan) -> None:
        if dict(plan.options).get("bias", "none") != "none":
            raise AdapterError(
                f"{plan.described} trains the layers' own biases, which the sessions of a trunk "
                "have in common: set trunk.adapters to 'frozen', or train no biases"
            )
        wrapped = wrap(trunk.model, plan, MASTER)
        if not isinstance(wrapped, PeftModel):
            raise AdapterError(
                f"none of the trunk's layers has a module that {_targets_key(plan)} names; "
                "set trunk.adapters to 'frozen', or name a module of the trunk"
            )
        self._trunk = trunk
        self._model = wrapped
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        self._layers: list[Any] = [m for m in wrapped.modules() if isinstance(m, kinds)]
        self.scaling = plan.scaling
        """The master's; None where the method is not plain LoRA."""
        self._frozen: dict[str, list[nn.Parameter]] = {}
        self._beneath: dict[str, _Beneath] = {}
        self._scaled_layers = [m for m in self._layers if isinstance(m, LoraLayer)]
        self.mixer = RowMixer(self._scaled_layers, plan.is_plain)
        """Computes the rows of one batch with several adapters."""
        self._active = ""
        self.activate(MASTER)

    def add(
        self,
        name: str,
        state: Mapping[str, Tensor] | None = None,
        *,
        scaling: Scaling | None = None,
    ) -> None:
        """Make the adapter `name` with the values of `state`, or else of the master's.

        Args:
            name: Of the new adapter.
            state: Its tensors.
            scaling: Its rank and alpha, where they are not the master's.

        Raises:
            AdapterError: `state` does not fit the trunk; no adapter is made then.
        """
        self._make(name, scaling or self.scaling)
        try:
            load_state(self._model, self.state(MASTER) if state is None else state, name)
        except AdapterError:
            self.remove(name)
            raise

    def begin_round(
        self,
        name: str,
        instructions: Instructions,
        received: Mapping[str, Tensor],
        *,
        scaling: Scaling | None,
        personal: PersonalTensors | None = None,
        trains: bool = True,
    ) -> AdapterRound:
        """Make the adapter `name` for one round, with what was folded into the model beneath it.

        Args:
            name: Of the new adapter.
            instructions: What the strategy asks for.
            received: See `AdapterRound.load`.
            scaling: The adapter's.
            personal: The silo's personal tensors on the trunk's layers, from an earlier round.
            trains: Whether the round is one of training.

        Raises:
            AdapterError: a tensor does not fit the trunk, or personal ones are lost; no adapter is
                made then.
        """
        self._make(name, scaling)
        try:
            begun = AdapterRound(
                self._model,
                instructions,
                scale=None if scaling is None else scaling.factor,
                trains=trains,
                adapter=name,
            )
            folded = begun.load(received, personal)
            if folded:
                self._beneath[name] = self._fold(name, folded)
        except AdapterError:
            self.remove(name)
            raise
        self.freeze_parts(name, instructions.trains)
        return begun

    def freeze_parts(self, name: str, trained: frozenset[str]) -> None:
        """Let gradients flow to the factors in `trained` (`A`, `B`) of `name`, and to no other."""
        instructions = Instructions(trains=trained)
        held = adapter_parameters(self._model, name)
        self._frozen[name] = [p for n, p in held if not instructions.trains_tensor(n)]

    def has_folded(self, name: str) -> bool:
        """Whether a second, frozen adapter lies beneath the adapter `name`."""
        return name in self._beneath

    def remove(self, name: str) -> None:
        """Delete the adapter `name`, and the one beneath it."""
        self.activate(MASTER)
        self._active = ""  # PEFT activates an adapter of its own choice as it deletes one
        self._frozen.pop(name, None)
        beneath = self._beneath.pop(name, None)
        if beneath is not None and beneath not in self._beneath.values():
            delete_adapter(self._model, beneath.name)
        delete_adapter(self._model, name)

    def copy(self, name: str, copied: str) -> None:
        """Make the adapter `copied`, frozen, with the values and the scaling of `name`."""
        config = self._neutral(self._model.peft_config[name])
        self._active = ""
        with numbers_aside(), without_peft_notices():
            self._model.add_adapter(copied, config)
        self._trunk.train(self._trunk.training)
        for layer in self._scaled_layers:
            if name in layer.scaling:
                layer.scaling[copied] = layer.scaling[name]
        load_state(self._model, self.state(name), copied)
        self.freeze_parts(copied, frozenset())

    def deactivate(self) -> None:
        """Compute without any adapter from now on."""
        for layer in self._layers:
            layer.set_adapter([])
        self._active = ""

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Compute with `factor` times the scaling of what is active meanwhile."""
        if factor == 1.0:
            yield
            return
        held = [(layer, dict(layer.scaling)) for layer in self._scaled_layers]
        for layer in self._scaled_layers:
            for name in layer.active_adapters:
                if name in layer.scaling:
                    layer.scaling[name] *= factor
        try:
            yield
        finally:
            for layer, scaling in held:
                layer.scaling.update(scaling)

    def activate(self, name: str) -> None:
        """Compute with the adapter `name` from now on, with gradients for what it trains only."""
        if name == self._active:
            return
        beneath = self._beneath.get(name)
        active = [name] if beneath is None else [name, beneath.name]
        for layer in self._layers:
            layer.set_adapter(active)
        folded = () if beneath is None else beneath.parameters.values()
        for parameter in (*self._frozen.get(name, ()), *folded):
            parameter.requires_grad_(False)
        self._active = name

    def _fold(self, name: str, folded: Mapping[str, Tensor]) -> "_Beneath":
        """The adapter of what was folded into the model; sessions of one content share it."""
        plain = plain_names(folded)
        for beneath in self._beneath.values():
            if beneath.is_of(plain):
                return beneath
        self._active = ""
        beneath_name = f"{name}-folded"
        add_folded(self._model, folded, name, beneath_name)
        held = dict(adapter_parameters(self._model, beneath_name))
        return _Beneath(name=beneath_name, parameters=held)

    def _make(self, name: str, scaling: Scaling | None) -> None:
        self._active = ""  # PEFT activates an adapter of its own choice as it adds one
        config = self._model.peft_config[MASTER]
        if self.scaling is None:
            config = self._neutral(config)
        elif scaling is not None and scaling != self.scaling:
            config = replace(config, r=scaling.r, lora_alpha=scaling.alpha)  # type: ignore[call-arg]
        with numbers_aside(), without_peft_notices():
            self._model.add_adapter(name, config)
        # New dropout modules train, whatever the trunk does.
        self._trunk.train(self._trunk.training)

    def _neutral(self, config: PeftConfig) -> PeftConfig:
        """A config by which PEFT adds an adapter and leaves the weights as they are."""
        if self.scaling is not None:
            return config
        own = copy.deepcopy(config)
        if isinstance(own, LoraConfig):
            own.init_lora_weights = True  # its tensors are overwritten
        if isinstance(own, AdaLoraConfig):
            own.inference_mode = True  # of which PEFT takes several; gradients are set free here
        return own

    def rank_allocator(self, name: str) -> TrunkAllocator | None:
        """Allocates the ranks of the adapter `name`; None where the method is not AdaLoRA."""
        config = self._model.peft_config[MASTER]
        if not isinstance(config, AdaLoraConfig):
            return None
        return TrunkAllocator(self.named_parameters(name), config)

    def orthogonality(self, name: str) -> Tensor | None:
        """AdaLoRA's term of the adapter `name`, a scalar; None where the method is another."""
        if not isinstance(self._model.peft_config[MASTER], AdaLoraConfig):
            return None
        named = self.named_parameters(name).items()
        return orthogonality(p for n, p in named if not n.endswith("lora_E"))

    def trained(self, name: str) -> list[nn.Parameter]:
        """The tensors of the adapter `name` that gradients flow to, in model order."""
        frozen = {id(parameter) for parameter in self._frozen.get(name, ())}
        return [p for p in self.named_parameters(name).values() if id(p) not in frozen]

    def named_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The tensors of the adapter `name` by their names in the uncut model, in model order."""
        return dict(adapter_parameters(self._model, name))

    def state(self, name: str) -> dict[str, Tensor]:
        """A float32 CPU copy of the adapter `name`, named as in the uncut model."""
        return read_state(self._model, name)

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite the adapter `name`; see `flower_split.adapters.load_state`."""
        load_state(self._model, state, name)


def _targets_key(plan: AdapterPlan) -> str:
    return "lora.target-modules" if plan.method == "LORA" else "peft.target-modules"
