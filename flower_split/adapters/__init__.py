"""LoRA adapters, which are PEFT's throughout: this package is the only one that imports it."""

from flower_split.adapters.export import save_adapter
from flower_split.adapters.plan import AdapterPlan, initial_state, resolve_lora
from flower_split.adapters.state import load_state, read_state, split_state
from flower_split.adapters.trunk_adapters import TrunkAdapters
from flower_split.adapters.wrapping import wrap

__all__ = [
    "AdapterPlan",
    "TrunkAdapters",
    "initial_state",
    "load_state",
    "read_state",
    "resolve_lora",
    "save_adapter",
    "split_state",
    "wrap",
]
