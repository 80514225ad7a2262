"""Export: from a run's checkpoint or adapter to a PEFT folder, or to a merged model, with a card.

At a silo, the silo's own variant: the run's adapter with the silo's personal tensors.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from flower_split.adapters import save_whole
from flower_split.adapters.merging import save_merged
from flower_split.apps.export_source import Source, from_adapter, from_checkpoint, is_adapter
from flower_split.apps.personal import PersonalPart
from flower_split.apps.prompt_format import FILE
from flower_split.config.tasks import CAUSAL, MASKED_LM, Task
from flower_split.errors import StateError
from flower_split.lowrank import personalised
from flower_split.private_files import keep_private, make_folder
from flower_split.reporting.model_card import CARD, personal_card


def export(
    source: Path,
    out: Path,
    *,
    best: bool = False,
    server_round: int | None = None,
    merge: str = "",
    silo: str = "",
    state_dir: Path | None = None,
    run: str = "",
    force: bool = False,
) -> str:
    """Write what a run has learned into the folder `out`, which appears whole or not at all.

    Args:
        source: A run's output folder, its `checkpoints`, one checkpoint in it, or a PEFT folder.
        out: Must not exist, unless `force`.
        best: Take the checkpoint that was kept as the best.
        server_round: Take that round's; by default the last one.
        merge: The uncut model, named as `model.name` is, to write it with the adapter merged into
            its weights in place of the adapter.
        silo: Name of the silo whose own variant is wanted: with its personal tensors, those that
            are on this machine, and those of the trunk's layers in a checkpoint.
        state_dir: The silo's state folder; by default as without it in the node config.
        run: Which run's, where the silo has tensors of several; also as the name of a folder.
        force: Replace what is there.

    Returns:
        What was exported, in words.

    Raises:
        StateError: there is no such checkpoint or state, or `out` exists or cannot be written.
        AdapterError, ModelError: adapter and model do not fit each other.
    """
    if os.path.lexists(out) and not force:
        raise StateError(f"{out} exists already: choose another folder, or give --force")
    found = _source(source, best=best, server_round=server_round)
    what = f"the adapter of {found.name}"
    try:
        make_folder(out.parent)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            adapter, made = Path(scratch, "adapter"), Path(scratch, "made")
            card = found.card
            if silo:
                parts = found.personal(silo, state_dir=state_dir, run=run)
                _write_personal(found, parts, adapter)
                card = personal_card(card, silo, parts[0].server_round, _modules(parts))
                holders = " and ".join(part.holder for part in parts)
                what += f" with the personal tensors of silo {silo} after round "
                what += f"{parts[0].server_round}, held by {holders},"
            else:
                found.write(adapter)
            if merge:
                # An adapter with a head is refused whatever the model is for.
                task = Task(name=MASKED_LM) if found.task == MASKED_LM else CAUSAL
                save_merged(adapter, merge, made, task=task)
                what = f"{merge} with {what}"
            else:
                adapter.rename(made)
            (made / CARD).write_text(card, encoding="utf-8")
            if found.prompt_format:
                (made / FILE).write_text(found.prompt_format, encoding="utf-8")
            keep_private(made)
            _put(made, out, Path(scratch, "replaced"))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"{out} cannot be written: {reason}") from error
    return what


def _write_personal(source: Source, parts: Sequence[PersonalPart], folder: Path) -> None:
    whole = source.whole()
    for part in parts:
        whole = personalised(whole, part.tensors, part.scale)
    save_whole(
        whole,
        folder,
        scale=1.0,
        base_model=source.base_model,
        fan_in_fan_out=source.fan_in_fan_out,
        task_type=source.task_type,
    )


def _modules(parts: Sequence[PersonalPart]) -> list[str]:
    return sorted({module for part in parts for module in part.modules})


def _source(source: Path, *, best: bool, server_round: int | None) -> Source:
    if not is_adapter(source):
        return from_checkpoint(source, best=best, server_round=server_round)
    if best or server_round is not None:
        raise StateError(
            f"{source} is one adapter: --best and --round choose in a run's output folder"
        )
    return from_adapter(source)


def _put(made: Path, out: Path, aside: Path) -> None:
    """Rename `made` to `out`; what was there is moved aside first, and back if that fails."""
    if os.path.lexists(out):
        out.rename(aside)
    try:
        made.rename(out)
    except OSError:
        if aside.exists():
            aside.rename(out)
        raise
