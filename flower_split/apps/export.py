"""Export: from a run's checkpoint to a PEFT folder, or to a merged model, with a model card."""

import os
import tempfile
from pathlib import Path

from flower_split.adapters import save_adapter
from flower_split.adapters.merging import save_merged
from flower_split.adapters.plan_fields import plan_from_fields
from flower_split.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from flower_split.checkpoint.archive import MANIFEST
from flower_split.errors import StateError
from flower_split.reporting.model_card import ModelCard
from flower_split.strategies.output import CHECKPOINTS
from flower_split.strategies.run_state import read_adapter, read_result, read_state


def export(
    source: Path,
    out: Path,
    *,
    best: bool = False,
    server_round: int | None = None,
    merge: str = "",
    force: bool = False,
) -> Checkpoint:
    """Write the adapter of a checkpoint into the folder `out`, which appears whole or not at all.

    Args:
        source: A run's output folder, its `checkpoints`, or one checkpoint in it.
        out: Must not exist, unless `force`.
        best: Take the checkpoint that was kept as the best.
        server_round: Take that round's; by default the last good one.
        merge: Folder or hub name of the uncut model, to write it with the adapter merged into its
            weights in place of the adapter.
        force: Replace what is there.

    Returns:
        The checkpoint that was exported.

    Raises:
        StateError: there is no such checkpoint, or `out` exists.
        AdapterError, ModelError: adapter and model do not fit each other.
    """
    if out.exists() and not force:
        raise StateError(f"{out} exists already: choose another folder, or give --force")
    checkpoint = _find(source, best=best, server_round=server_round)
    state = read_state(checkpoint)
    base = str(state.settings["model.name"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        adapter, made = Path(scratch, "adapter"), Path(scratch, "made")
        save_adapter(
            read_adapter(checkpoint), plan_from_fields(state.plan), adapter, base_model=base
        )
        if merge:
            save_merged(adapter, merge, made)
        else:
            adapter.rename(made)
        (made / "README.md").write_text(_card(checkpoint).render(), encoding="utf-8")
        os.chmod(made, 0o755)
        _put(made, out, Path(scratch, "replaced"))
    return checkpoint


def _put(made: Path, out: Path, aside: Path) -> None:
    """Rename `made` to `out`; what was there is moved aside first, and back if that fails."""
    if out.exists():
        out.rename(aside)
    try:
        made.rename(out)
    except OSError:
        if aside.exists():
            aside.rename(out)
        raise


def _find(source: Path, *, best: bool, server_round: int | None) -> Checkpoint:
    if (source / MANIFEST).is_file():
        if best or server_round is not None:
            raise StateError(
                f"{source} is one checkpoint: --best and --round choose in a run's output folder"
            )
        return read_checkpoint(source)
    inside = source / CHECKPOINTS
    folder = inside if inside.is_dir() else source
    found = find_checkpoint(folder, server_round=server_round, best=best)
    if found is None:
        raise StateError(
            f"{source} has no checkpoints: give a run's output folder, or a checkpoint"
        )
    return found


def _card(checkpoint: Checkpoint) -> ModelCard:
    state, result = read_state(checkpoint), read_result(checkpoint)
    settings, number = state.settings, checkpoint.server_round
    metrics = {
        **(result.train_metrics_clientapp.get(number) or {}),
        **(result.evaluate_metrics_clientapp.get(number) or {}),
    }
    return ModelCard(
        base_model=_public(str(settings["model.name"])),
        revision=str(settings["model.revision"]),
        bottom_layers=int(settings["split.bottom-layers"]),
        top_layers=int(settings["split.top-layers"]),
        trunk_adapters=str(settings["trunk.adapters"]),
        strategy=str(settings["strategy.name"]),
        rounds=number,
        rank=int(state.plan["r"]),
        alpha=float(state.plan["alpha"]),
        examples={
            record.silo: int(count)
            for record in result.of("train", number)
            if isinstance(count := record.metrics.get("num-examples"), int)
        },
        metrics={k: float(v) for k, v in metrics.items() if not isinstance(v, list)},
        versions=state.versions,
    )


def _public(model: str) -> str:
    """A model's name without the folders of the server that it was read from."""
    return Path(model).name if Path(model).is_absolute() else model
