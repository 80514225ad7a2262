"""Written names: what a checkpoint calls a class or a function, wherever its code lies now.

A checkpoint names code as `module:name`, by its first home: code that moves or is renamed keeps
the name that checkpoints know, so that a run resumes across the move, and a row is added here.
"""

_MODULES = {
    "flower_split.lowrank.instructions": "flower_split.lowrank.orders",
    "flower_split.strategies.lora.base": "flower_split.strategies.lora",
    "flower_split.strategies.lora.fedavg": "flower_split.strategies.fedavg_lora",
    "flower_split.strategies.lora.fedex": "flower_split.strategies.fedex_lora",
    "flower_split.strategies.lora.fedsa": "flower_split.strategies.fedsa_lora",
    "flower_split.strategies.lora.ffa": "flower_split.strategies.ffa_lora",
    "flower_split.strategies.lora.flex": "flower_split.strategies.flex_lora",
    "flower_split.strategies.lora.flora": "flower_split.strategies.flora",
    "flower_split.strategies.lora.global_adapter": "flower_split.strategies.global_adapter",
    "flower_split.strategies.lora.het": "flower_split.strategies.het_lora",
    "flower_split.strategies.lora.replies": "flower_split.strategies.lora_replies",
    "flower_split.strategies.lora.ro": "flower_split.strategies.ro_lora",
    "flower_split.strategies.lora.scaffold": "flower_split.strategies.scaffold_lora",
    "flower_split.strategies.personal_parts": "flower_split.strategies.personal",
}
"""Module now, and the module under which checkpoints know what it holds."""

_NAMES = {
    "flower_split.adapters.session_state:PersonalTensors": "flower_split.adapters.rounds:Kept",
    "flower_split.lowrank.scaling:Allowance": "flower_split.lowrank.allowance:Allowance",
    "flower_split.lowrank.orders:Instructions": "flower_split.lowrank.orders:Orders",
    "flower_split.strategies.checkpoints.run_state:WrittenSessionState": (
        "flower_split.server.left_states:LeftState"
    ),
    "flower_split.strategies.global_adapter:ModuleResult": (
        "flower_split.strategies.lora_modules:ModuleResult"
    ),
    "flower_split.strategies.global_adapter:ModuleRound": (
        "flower_split.strategies.lora_modules:ModuleRound"
    ),
}
"""Name now, and the name that checkpoints know.

Where the whole module has moved, the name now is the one in the module that checkpoints know.
"""

_CURRENT_MODULES = {written: now for now, written in _MODULES.items()}
_CURRENT_NAMES = {written: now for now, written in _NAMES.items()}


def written_name(module: str, name: str) -> str:
    """`module:name` as a checkpoint has it, for code that is at `module` and `name` now."""
    found = f"{_MODULES.get(module, module)}:{name}"
    return _NAMES.get(found, found)


def current_name(written: str) -> tuple[str, str]:
    """Module and name at which the code is now that a checkpoint calls `written`."""
    module, _, name = _CURRENT_NAMES.get(written, written).partition(":")
    return _CURRENT_MODULES.get(module, module), name
