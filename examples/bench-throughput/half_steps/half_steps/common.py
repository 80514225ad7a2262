"""What both sides of the app agree on."""

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from flower_split.adapters import AdapterPlan, initial_state, resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.segments import layers_path, load_skeleton

RESULT = "half_steps.json"
LORA = LoraSettings(r=8)
LEARNING_RATE = 1e-3


def adapters(checkpoint: Path) -> tuple[AdapterPlan, dict[str, Tensor], str]:
    """The plan of the whole adapter, where it starts from, and the path of the layers."""
    skeleton: PreTrainedModel = load_skeleton(str(checkpoint))
    return (
        resolve_lora(skeleton, LORA),
        initial_state(skeleton, LORA, seed=0),
        layers_path(skeleton),
    )
