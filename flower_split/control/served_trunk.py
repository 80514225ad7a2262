"""`ServedTrunk`: the weights of a trunk service, once, on the devices that hold them.

Every run computes with modules of its own on these weights. A device computes for one run at a
time: each has its turns, so that runs whose passes are at different devices do not wait.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from flower_split.config.peft import ADALORA
from flower_split.config.sections import SplitConfig
from flower_split.devices.memory import unused_memory
from flower_split.segments import Trunk
from flower_split.server.compute.kept_activations import KeptActivations
from flower_split.server.compute.turns import DeviceTurns
from flower_split.server.stages.local_chain import free_for_passes


class ServedTrunk:
    """What runs have in common.

    Args:
        stages: Of the trunk, in the order of their layers, each on its device; frozen from now on,
            and never computed with themselves.
        max_activation_bytes: Of activations that all runs together keep, at every stage an equal
            part of it; 0 for what is free there now.
    """

    def __init__(self, stages: Sequence[Trunk], max_activation_bytes: int = 0) -> None:
        for stage in stages:
            stage.requires_grad_(False)
        self._stages = tuple(stages)
        free = free_for_passes(stages)
        part = max_activation_bytes / len(stages)
        self.turns = tuple(DeviceTurns(KeptActivations(int(part or bytes_))) for bytes_ in free)
        """Of every stage: a context in which alone its device computes."""
        self.max_memory = min(free) / 1e9
        """GB that a pass may need by default at the stage whose device has least."""

    @property
    def hidden_size(self) -> int:
        """H of every tensor."""
        return self._stages[0].hidden_size

    @property
    def devices(self) -> str:
        """The stages' devices, with commas."""
        return ", ".join(str(stage.device) for stage in self._stages)

    def unused_memory(self) -> dict[str, int]:
        """Bytes that nobody uses now, of every device."""
        devices = dict.fromkeys(stage.device for stage in self._stages)
        return {str(device): unused_memory(device) for device in devices}

    def stages_of_run(self) -> list[Trunk]:
        """The stages anew, with modules of their own on these weights."""
        return [stage.with_same_weights() for stage in self._stages]

    @contextmanager
    def nothing_computed(self) -> Iterator[None]:
        """A context in which no device computes for any run."""
        with ExitStack() as stack:
            for turns in self.turns:  # in this order always, or two would wait for each other
                stack.enter_context(turns)
            yield

    def problems(self, config: SplitConfig) -> list[str]:
        """What a run of `config` asks for that stages do not compute exactly as one trunk does."""
        if len(self._stages) == 1:
            return []
        found = list[str]()
        place = f"the trunk service lays its trunk over {self.devices}"
        instead = "have a service on one device (--device), or leave trunk.service empty"
        if config.split.leaves_choice:
            found.append(
                "split.max-bottom-layers and split.max-top-layers leave silos a choice, and "
                f"{place}, whose stages hold the layers of one cut: set both to 0, {instead}"
            )
        if config.trunk.adapters == "frozen":
            return found
        if config.peft.type == ADALORA:
            found.append(
                "peft.type 'ADALORA' has a term of the loss, and ranks, of all layers at once, and "
                f"{place}, each of which has some: set trunk.adapters to 'frozen', {instead}"
            )
        if config.dp.noise:
            found.append(
                f"dp.noise needs the trunk's gradients row by row, and {place}, whose stages do "
                f"not tell them: set trunk.adapters to 'frozen', {instead}"
            )
        return found

    def __str__(self) -> str:
        if len(self._stages) == 1:
            return f"on {self.devices}"
        return ", ".join(f"{_layers(stage)} on {stage.device}" for stage in self._stages)


def _layers(stage: Trunk) -> str:
    held = stage.cuts.trunk_range
    if len(held) == 1:
        return f"layer {held.start}"
    return f"layers {held.start} to {held.stop - 1}"
