"""What a run left in its output folder, as far as it is a function of the run's settings."""

import json
from pathlib import Path
from typing import Any


def outcome(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The adapter, and the report without what time it took and where it was written."""
    report: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    for one in (*report["rounds"], *report["alone"]):
        del one["seconds"], one["train_counters"], one["evaluate_counters"]
    del report["seconds"], report["config"]
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes(), report
