"""What an export is made of: a run's checkpoint, or a PEFT folder that is there already."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from flower_split.adapters import (
    read_adapter_folder,
    save_learned,
    save_whole,
)
from flower_split.adapters.plan import TASK_TYPES, plan_from_fields
from flower_split.adapters.reading import CONFIG
from flower_split.apps.card import model_card
from flower_split.apps.personal import PersonalPart, find_personal, personal_folders, personal_part
from flower_split.apps.prompt_format import FILE, prompt_format, written
from flower_split.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from flower_split.checkpoint.archive import MANIFEST
from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import AdapterError, StateError
from flower_split.lowrank import combined
from flower_split.reporting.model_card import CARD, bare_card
from flower_split.server.session_states import SiloState
from flower_split.strategies.checkpoints.run_state import (
    read_adapter,
    read_result,
    read_session_states,
    read_state,
)
from flower_split.strategies.output import CHECKPOINTS


@dataclass(frozen=True, kw_only=True)
class Source:
    """An adapter of the whole model, and where it comes from."""

    name: str
    """What it is of, in words."""
    base_model: str
    fan_in_fan_out: bool
    card: str
    """Its model card, Markdown."""
    whole: Callable[[], dict[str, Tensor]]
    """Gives its factors, of scale 1 and with what was folded into the model among them."""
    write: Callable[[Path], object]
    """Writes it as a standard PEFT folder."""
    task_type: str | None = "CAUSAL_LM"
    """PEFT's name of the task."""
    task: str = CAUSAL_LM
    """What the model is for, as far as that is known."""
    run: str = ""
    """Id of the run, or of the first run that it resumes; empty where it is not known."""
    server_round: int | None = None
    prompt_format: str = ""
    """Content of `prompt_format.json`; empty where the format is not known."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the run, by run-config key; empty where they are not known."""
    trunk: Mapping[str, SiloState] = field(default_factory=dict)
    """The trunk's halves of the silos' session states, by the silos' names."""

    def personal(
        self, silo: str, *, state_dir: Path | None = None, run: str = ""
    ) -> list[PersonalPart]:
        """The personal tensors of `silo`: the trunk's part and the silo's, those that are here.

        Args:
            silo: The silo's name.
            state_dir: As in its node config; None for its default.
            run: See `find_personal`; by default this run's, where that is known.

        Raises:
            StateError: neither is here, the silo's is not in the `state_dir` that is given, or it
                is damaged.
        """
        run = run or self.run
        held = self.trunk.get(silo)
        own = None if held is None else personal_part(held.state, held.server_round, "the trunk")
        parts = [] if own is None else [own]
        if parts and state_dir is None and not personal_folders(None, silo, run):
            return parts  # this is the server's machine, not the silo's
        tag = "" if held is None else held.tag
        return [*parts, find_personal(state_dir, silo, run=run, last=self.server_round, tag=tag)]


def is_adapter(source: Path) -> bool:
    """Whether `source` is a PEFT folder."""
    return os.path.isfile(source / CONFIG)


def from_adapter(source: Path) -> Source:
    """The adapter in a PEFT folder, such as `adapter` in a run's output folder.

    Raises:
        AdapterError: it cannot be read.
    """
    found = read_adapter_folder(source)
    told = source / CARD
    return Source(
        name=str(source),
        base_model=found.base_model,
        fan_in_fan_out=found.fan_in_fan_out,
        card=_text(told) or bare_card(found.base_model),
        prompt_format=_text(source / FILE),
        task_type=found.task_type,
        whole=lambda: found.state,
        write=lambda folder: save_whole(
            found.state,
            folder,
            scale=1.0,
            base_model=found.base_model,
            fan_in_fan_out=found.fan_in_fan_out,
            task_type=found.task_type,
        ),
    )


def from_checkpoint(source: Path, *, best: bool, server_round: int | None) -> Source:
    """The adapter of a checkpoint; arguments as `export`'s.

    Raises:
        StateError: there is no such checkpoint.
    """
    checkpoint = _find(source, best=best, server_round=server_round)
    state = read_state(checkpoint)
    plan = plan_from_fields(state.plan)
    adapter, base = read_adapter(checkpoint), str(state.settings["model.name"])
    return Source(
        name=f"round {checkpoint.server_round}",
        base_model=base,
        fan_in_fan_out=plan.fan_in_fan_out,
        card=model_card(
            read_result(checkpoint),
            settings=state.settings,
            plan=plan,
            adapter=adapter,
            server_round=checkpoint.server_round,
            versions=state.versions,
        ).render(),
        whole=lambda: (
            combined(adapter, plan.scaling.factor)
            if plan.scaling is not None
            else _no_factors(f"round {checkpoint.server_round}")
        ),
        write=lambda folder: save_learned(adapter, plan, folder, base_model=base),
        task_type=TASK_TYPES[plan.task],
        task=str(state.settings.get("model.task") or CAUSAL_LM),
        run=state.origin_run_id,
        server_round=checkpoint.server_round,
        prompt_format=written(prompt_format(state.settings)),
        settings=state.settings,
        trunk={held.silo: held for held in read_session_states(checkpoint)},
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _no_factors(name: str) -> dict[str, Tensor]:
    raise AdapterError(
        f"the adapter of {name} is not plain LoRA, and only that has personal parts: leave out "
        "--silo"
    )


def _find(source: Path, *, best: bool, server_round: int | None) -> Checkpoint:
    if os.path.isfile(source / MANIFEST):
        if best or server_round is not None:
            raise StateError(
                f"{source} is one checkpoint: --best and --round choose in a run's output folder"
            )
        return read_checkpoint(source)
    try:
        source.stat()
    except FileNotFoundError:
        raise StateError(
            f"there is no {source}: give a run's output folder, a checkpoint, or a PEFT folder"
        ) from None
    except OSError:
        pass  # whoever looks for checkpoints there says why it cannot be read
    inside = source / CHECKPOINTS
    folder = inside if os.path.isdir(inside) else source
    found = find_checkpoint(folder, server_round=server_round, best=best)
    if found is None:
        raise StateError(
            f"{source} has no checkpoints: give a run's output folder, a checkpoint, or a PEFT "
            "folder"
        )
    return found
