"""Adapters, which are PEFT's throughout: this package is the only one that imports it."""

from flower_split.adapters.adalora.rank_allocation import allocate_ranks
from flower_split.adapters.export import save_adapter, save_learned, save_whole
from flower_split.adapters.folding import fold, own_scaling, train_parts
from flower_split.adapters.loading import load_adapter
from flower_split.adapters.methods import method_problems
from flower_split.adapters.plan import AdapterPlan, initial_state, resolve_lora
from flower_split.adapters.reading import AdapterFolder, read_adapter_folder
from flower_split.adapters.resolving import initial_adapter, resolve_plan
from flower_split.adapters.rounds import AdapterRound, fitted
from flower_split.adapters.session_state import PersonalTensors, SessionState
from flower_split.adapters.state import adapter_parameters, load_state, read_state, split_state
from flower_split.adapters.trunk_adapters import TrunkAdapters
from flower_split.adapters.wrapping import wrap

__all__ = [
    "AdapterFolder",
    "AdapterPlan",
    "AdapterRound",
    "PersonalTensors",
    "SessionState",
    "TrunkAdapters",
    "adapter_parameters",
    "allocate_ranks",
    "fitted",
    "fold",
    "initial_adapter",
    "initial_state",
    "load_adapter",
    "load_state",
    "method_problems",
    "own_scaling",
    "read_adapter_folder",
    "read_state",
    "resolve_lora",
    "resolve_plan",
    "save_adapter",
    "save_learned",
    "save_whole",
    "split_state",
    "train_parts",
    "wrap",
]
