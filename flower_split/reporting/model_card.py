"""The model card of an exported adapter: where it comes from, in the hub's format."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flower_split.config.tasks import CAUSAL_LM
from flower_split.reporting.usage import usage_code

CARD = "README.md"
"""Name of the model card's file."""

_METADATA = """---
library_name: peft
base_model: {base}
tags:
- lora
- federated-learning
- flower
---
"""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model card says. No text of a silo, no path of a silo, no secret."""

    base_model: str
    revision: str = ""
    bottom_layers: int | str
    """Of a silo; a text such as `1 to 3` where silos choose."""
    top_layers: int | str
    trunk_adapters: str
    strategy: str
    personal: str = ""
    """Modules whose adapters stay in the silos."""
    rounds: int
    rank: int
    alpha: float
    rslora: bool = False
    method: str = ""
    """PEFT's method and what was chosen of it, in words; empty for plain LoRA."""
    task: str = CAUSAL_LM
    """What the model is for."""
    labels: str = ""
    """Names of the labels in the order of the head's rows, with commas; empty where it has none."""
    module_ranks: Collection[int] = ()
    """Ranks of the exported modules, which have what was folded into the model in them."""
    examples: Mapping[str, int] = field(default_factory=dict)
    """Training examples by silo, as the silos reported them."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the exported round, averaged over the silos."""
    versions: Mapping[str, str] = field(default_factory=dict)
    results: str = ""
    """A section of Markdown with what the run did for each silo."""
    prompt_format: Mapping[str, str] = field(default_factory=dict)
    """How fields became the text that the model reads: `template`; of causal models `prompt`."""
    privacy: Sequence[str] = ()
    """What may be said of the run's privacy, sentence by sentence."""

    def render(self) -> str:
        """The card as Markdown."""
        facts: dict[str, Any] = {
            "base model": f"{self.base_model}{f' at {self.revision}' if self.revision else ''}",
            **({"task": self.task} if self.task != CAUSAL_LM else {}),
            **({"labels": self.labels} if self.labels else {}),
            "layers with the silos": f"{self.bottom_layers} bottom, {self.top_layers} top",
            "adapters of the layers between": self.trunk_adapters,
            **self._method(),
            **({"ranks here, by module": self._ranks()} if self._ranks() else {}),
            "strategy": self.strategy,
            **({"not in it, but in the silos": self.personal} if self.personal else {}),
            "rounds": self.rounds,
            "silos in the last round": len(self.examples) or "unknown",
        }
        sections = {
            "Training": facts,
            "Training examples by silo": self.examples,
            "Metrics of the last round, averaged over the silos": self.metrics,
            "Versions": self.versions,
        }
        body = "".join(
            f"\n## {title}\n\n" + "".join(f"- {_line(k)}: {_line(v)}\n" for k, v in rows.items())
            for title, rows in sections.items()
            if rows
        )
        name = self.method.partition(" ")[0] or "LoRA"
        return (
            _METADATA.format(base=_quoted(self.base_model)).replace("- lora", f"- {name.lower()}")
            + f"\n# {name} adapter, trained across silos with flower_split\n"
            + self._use()
            + self.results
            + body
            + self._privacy()
        )

    def _use(self) -> str:
        """How prompts are written, and code that loads the adapter and continues one."""
        if "template" not in self.prompt_format:
            return ""
        told = "".join(f"- {name}: {_code(text)}\n" for name, text in self.prompt_format.items())
        section = f"\n## Prompt format\n\nFields of the silos' examples are in braces.\n\n{told}"
        code = usage_code(self.base_model, self.prompt_format, task=self.task)
        if not code:
            return section
        return f'{section}\n## Use it\n\n```python\n{code}```\n\n`"adapter"` is this folder.\n'

    def _privacy(self) -> str:
        if not self.privacy:
            return ""
        return "\n## Privacy\n\n" + "".join(f"- {_line(said)}\n" for said in self.privacy)

    def _method(self) -> dict[str, str]:
        if self.method:
            return {"method": self.method}
        return {"LoRA": f"r = {self.rank}, alpha = {self.alpha:g}{', rsLoRA' * self.rslora}"}

    def _ranks(self) -> str:
        """The ranks of the modules, where they are not simply the run's."""
        found = set(self.module_ranks)
        return "" if found <= {self.rank} else f"{min(found)} to {max(found)}"


def bare_card(base_model: str) -> str:
    """The card of an adapter of which nothing else is known."""
    return _METADATA.format(base=_quoted(base_model)) + "\n# LoRA adapter\n"


def public_name(model: str) -> str:
    """A model's name without the folders of the server that it was read from."""
    return Path(model).name if Path(model).is_absolute() else model


def personal_card(card: str, silo: str, server_round: int, modules: Sequence[str]) -> str:
    """`card` with what makes the adapter the variant of one silo."""
    listed = "".join(f"- {_line(module)}\n" for module in modules)
    return (
        f"{card}\n## Personal variant of silo {_line(silo)}\n\n"
        f"These modules are the silo's own, from round {server_round}, and no other silo has seen "
        f"them: this folder is as confidential as the silo's data.\n\n{listed}"
    )


def _line(value: object) -> str:
    """One line that no name can break out of."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(" " if ord(c) < 32 else c for c in text)


def _code(text: str) -> str:
    """`text` as code on one line, its line breaks written out."""
    shown = text.replace("\\", "\\\\").replace("\n", "\\n").replace("`", "'")
    return f"`{_line(shown)}`" if shown else "none"


def _quoted(text: str) -> str:
    escaped = _line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
