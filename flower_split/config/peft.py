"""The adapters' method: which one of PEFT's, and the keys of its own config."""

from dataclasses import dataclass, field, replace
from typing import Any

from flower_split.config.tasks import HEADS

LORA, ADALORA = "LORA", "ADALORA"


@dataclass(frozen=True, kw_only=True)
class PeftSettings:
    """The adapters' method. Every further key is one of PEFT's config for that method, see
    [peft-methods.md](peft-methods.md); for `LORA` they are added to the keys under `lora`."""

    type: str = LORA
    """PEFT's name of the method, such as `IA3`, `VERA` or `OFT`; capitals do not matter."""
    options: dict[str, float | str] = field(default_factory=dict)
    """Fields of PEFT's config (`peft.use-dora`, `peft.target-modules`, …), not typed yet: lists
    are text with commas, dicts are JSON."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self.type.upper())

    def scheduled(self, steps: int) -> "PeftSettings":
        """The same; with AdaLoRA for a run of `steps` optimizer steps, where `total_step` is not
        given and they are known."""
        if self.type != ADALORA or not steps or "total_step" in self.options:
            return self
        return replace(self, options={**self.options, "total_step": steps})

    @property
    def is_plain(self) -> bool:
        """Whether the adapters are those that the `lora` section describes, and nothing else."""
        return self.type == LORA and not self.options

    @property
    def virtual_tokens(self) -> int:
        """Virtual tokens that the method puts before every sequence; 0 where it puts none."""
        return int(self.options.get("num_virtual_tokens", 0))

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells settings apart."""
        return self.type, *sorted(self.options.items())

    def with_heads(self) -> "PeftSettings":
        """The same, with the heads of classifiers among what is trained as a whole, as PEFT has
        them."""
        given = str(self.options.get("modules_to_save", ""))
        named = [name.strip() for name in given.split(",") if name.strip()]
        text = ", ".join(dict.fromkeys((*HEADS, *named)))
        return replace(self, options={**self.options, "modules_to_save": text})

    def __str__(self) -> str:
        given = (f"peft.{n.replace('_', '-')} {v!r}" for n, v in sorted(self.options.items()))
        return ", ".join([f"peft.type {self.type}", *given])
