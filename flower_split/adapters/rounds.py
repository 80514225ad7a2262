"""`AdapterRound`: what an adapter starts from, trains and sends in one round, by instructions.

A silo that holds the whole model follows the instructions with this code, and so do both parties
of a split model, each on its own layers. What it does with a tensor depends on that tensor and its
name only, so that the two parts of a split adapter are those of the uncut one.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flower_split.adapters.folding import own_scaling
from flower_split.adapters.plan import ADAPTER
from flower_split.adapters.session_state import PersonalTensors
from flower_split.adapters.state import adapter_parameters, load_state, read_state
from flower_split.errors import AdapterError
from flower_split.lowrank import (
    CONTROL,
    Factors,
    Instructions,
    Pair,
    fit_part,
    fresh_factors,
    pair_up,
    split_folded,
)
from flower_split.optimization.corrections import Corrections


class AdapterRound:
    """One adapter of `model` during one round, from `load` on.

    Args:
        model: Holds the adapter, perhaps in a part of its modules or none; whatever its tensors
            held is overwritten by `load`.
        instructions: What the strategy asks for.
        scale: Factor that the model gives the adapter's product; None where the method is not
            plain LoRA, whose tensors are taken and sent as they are.
        trains: Whether the round is one of training.
        adapter: The adapter's name.
    """

    def __init__(
        self,
        model: nn.Module,
        instructions: Instructions,
        *,
        scale: float | None,
        trains: bool = True,
        adapter: str = ADAPTER,
    ) -> None:
        self.instructions = instructions
        self.scale = scale
        self._model = model
        self._trains = trains
        self._adapter = adapter

    def load(
        self, received: Mapping[str, Tensor], personal: PersonalTensors | None = None
    ) -> dict[str, Tensor]:
        """Load what came into the adapter, and the personal tensors in place of what did not come.

        Args:
            received: Adapter tensors of any rank, at the instructions' scale, with folded factors
                and control variates among them.
            personal: As an earlier round left them; None where there are none.

        Returns:
            The folded factors, with which the caller has the model compute.

        Raises:
            AdapterError: the tensors do not fit the model, or personal ones are lost.
        """
        personal = personal or PersonalTensors()
        common = {n.removeprefix(CONTROL): t for n, t in received.items() if n.startswith(CONTROL)}
        tensors, folded = split_folded({n: t for n, t in received.items() if CONTROL not in n})
        state = self._fitted(tensors, self.instructions.scale)
        own = {n: t for n, t in personal.tensors.items() if n in self.instructions.personal}
        state |= self._fitted(own, personal.scale)
        parameters = dict(adapter_parameters(self._model, self._adapter))
        lost = (self.instructions.personal & parameters.keys()) - state.keys()
        if lost:
            raise AdapterError(
                f"{len(lost)} personal tensors of this silo (first: {min(lost)}) are lost: the "
                "next round starts them anew"
            )
        load_state(self._model, state, self._adapter)
        controls = {n.removeprefix(CONTROL): t for n, t in personal.tensors.items() if CONTROL in n}
        self._corrections = Corrections(
            {n: p for n, p in parameters.items() if self.instructions.trains_tensor(n)},
            proximal_mu=self.instructions.proximal_mu,
            common=common if self.instructions.controlled and self._trains else None,
            own=controls,
        )
        return folded

    def correct_gradients(self) -> None:
        """Add FedProx's and SCAFFOLD's terms, where the strategy asks for them."""
        self._corrections.apply()

    def take_back(self) -> None:
        """The step that gradients were corrected for last is not taken."""
        self._corrections.take_back()

    def sent(self) -> dict[str, Tensor]:
        """What was trained and is not personal, float32, and how the control variates changed."""
        sent = {
            name: tensor
            for name, tensor in read_state(self._model, self._adapter).items()
            if self.instructions.trains_tensor(name) and name not in self.instructions.personal
        }
        if self.instructions.controlled:
            sent |= {CONTROL + name: part for name, part in self._corrections.change().items()}
        return sent

    def personal(self) -> PersonalTensors:
        """The personal tensors as the round leaves them."""
        tensors: dict[str, Tensor] = {}
        if self.instructions.personal:
            state = read_state(self._model, self._adapter)
            tensors = {name: t for name, t in state.items() if name in self.instructions.personal}
        if self.instructions.controlled:
            own = self._corrections.next_own()
            tensors |= {CONTROL + name: tensor for name, tensor in own.items()}
        return PersonalTensors(tensors=tensors, scale=1.0 if self.scale is None else self.scale)

    def _fitted(self, tensors: Mapping[str, Tensor], scale: float | None) -> dict[str, Tensor]:
        if self.scale is None:
            return dict(tensors)
        return fitted(self._model, tensors, scale or self.scale, self._adapter)


def fitted(
    model: nn.Module, tensors: Mapping[str, Tensor], scale: float, adapter: str = ADAPTER
) -> dict[str, Tensor]:
    """`tensors` at the rank and scale of `adapter`; tensors that it does not have stay as they are.

    Of a larger rank the first components are taken. A smaller one is filled up with the components
    of a fresh adapter, which are the same in every process.

    Args:
        model: Holds `adapter`, perhaps in a part of its modules only.
        tensors: Named as in PEFT's `adapter_model.safetensors`.
        scale: Of the product of the given tensors.
        adapter: Its name.

    Raises:
        AdapterError: the adapter's modules differ in rank or alpha.
    """
    scaling = own_scaling(model, adapter)
    if scaling is None:
        return dict(tensors)
    held = {name: parameter.shape for name, parameter in adapter_parameters(model, adapter)}
    ratio = scale / scaling.factor
    result = dict(tensors)
    for pair in pair_up(held):
        fresh = None  # drawn where it is needed only: large, and the same whenever it is drawn
        for name, part, axis in ((pair.a, "A", 0), (pair.b, "B", 1)):
            if name not in tensors or tensors[name].ndim != 2:
                continue
            tensor = tensors[name].float()
            if tensor.shape[axis] >= scaling.r:
                tensor = tensor.narrow(axis, 0, scaling.r)
            else:
                fresh = fresh or _fresh(pair, scaling.r, held[pair.a][1], held[pair.b][0])
                tensor = fit_part(part, tensor, fresh.a if part == "A" else fresh.b)
            result[name] = tensor * ratio if part == "B" else tensor
    return result


def _fresh(pair: Pair, rank: int, inputs: int, outputs: int) -> Factors:
    seed = int.from_bytes(hashlib.sha256(pair.module.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    return fresh_factors(rank, inputs, outputs, generator=generator, embedding=pair.embedding)
