"""Export of an adapter as a standard PEFT folder."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from flower_split.adapters.plan import AdapterPlan
from flower_split.adapters.state import check_state


def save_adapter(
    state: Mapping[str, Tensor], plan: AdapterPlan, folder: Path, *, base_model: str
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`.

    `PeftModel.from_pretrained(base, folder)` loads it into the uncut model. Each file appears
    whole or not at all.

    Args:
        state: The whole model's adapter.
        plan: The plan it was trained with.
        folder: Made when it does not exist.
        base_model: Name or path of the uncut model, for `adapter_config.json`.

    Raises:
        AdapterError: `state` is not the whole adapter, or has values that are not finite.
    """
    check_state(state, dict(plan.shapes))
    folder.mkdir(parents=True, exist_ok=True)
    config = plan.peft_config()
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        config.save_pretrained(scratch)
        save_file(
            {name: state[name].contiguous() for name in plan.names},
            Path(scratch, "adapter_model.safetensors"),
            metadata={"format": "pt"},
        )
        for written in sorted(os.listdir(scratch)):
            os.replace(Path(scratch, written), folder / written)
    return folder
