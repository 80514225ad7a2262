"""What a run left, for its use: the adapter's folder, the model that it fits, its prompt format."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flower_split.adapters.reading import CONFIG
from flower_split.apps.export import export
from flower_split.apps.export_source import from_checkpoint, is_adapter
from flower_split.apps.prompt_format import FILE, prompt_format
from flower_split.apps.run_record import RESULT
from flower_split.config.resuming import settings
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import AdapterError, ModelError, StateError
from flower_split.reporting import RunResult, read_result
from flower_split.strategies.output import ADAPTER, CHECKPOINTS

_NEEDED = ("model.name", "model.revision", "model.dtype", "model.attention")
_ASKING = ("data.text", "data.prompt", "data.template", "data.messages", "data.tools")
"""Keys that say what a prompt is."""
_USED = (*_NEEDED, "model.quantization", "split.bottom-layers", "split.top-layers", *_ASKING)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of a run's adapters is used; what `export` takes."""

    best: bool = False
    """The round that was kept as the best."""
    server_round: int | None = None
    """This round's; None for the last one."""
    silo: str = ""
    """With this silo's personal tensors, found here."""
    state_dir: Path | None = None
    """The silo's state folder; None as without it in the node config."""
    of_run: str = ""
    """Of which run, where the silo has tensors of several."""

    @property
    def is_plain(self) -> bool:
        """Whether it is what the run's output folder has as its adapter."""
        return not (self.best or self.silo or self.server_round is not None)


@dataclass(frozen=True, kw_only=True)
class TunedRun:
    """An adapter, and what is known of its use."""

    name: str
    """Of the folder that was given."""
    adapter: Path
    """PEFT folder."""
    config: SplitConfig
    """The run's model, cut and data; the other sections are defaults."""
    prompt_format: Mapping[str, str]
    """As `flower_split.apps.prompt_format` makes it; empty where it is not known."""


@contextmanager
def tuned_run(
    folder: Path,
    *,
    choice: Choice | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[TunedRun]:
    """What `folder` has for use, as long as the block lasts.

    Args:
        folder: A run's output folder, or a PEFT folder.
        choice: Which adapter; by default the one in the run's output folder.
        overrides: Run-config keys that replace the run's, such as `model.name`.

    Raises:
        StateError: there is no such folder, or the run left no adapter.
        AdapterError: the adapter's own files cannot be read.
        ModelError: the model is for another task than continuing texts.
        ConfigError: a setting is unknown or malformed.
    """
    choice, given = choice or Choice(), dict(overrides or {})
    if not folder.is_dir():
        raise StateError(
            f"there is no folder {folder}: give the output folder of a run, or a PEFT folder"
        )
    with tempfile.TemporaryDirectory(prefix="flower-split-") as scratch:
        found, values, form = _adapter(folder, choice, Path(scratch, "adapter"))
        values = {**values, **given}
        if not values.get("model.name"):
            raise ModelError(f"{folder} does not say of which model it is: name it with --model")
        config = read_run_config(values)
        if not form or given.keys() & {*_ASKING}:
            form = prompt_format(settings(config)) if values.keys() & {*_ASKING} else {}
        yield TunedRun(name=folder.resolve().name, adapter=found, config=config, prompt_format=form)


def _adapter(
    folder: Path, choice: Choice, scratch: Path
) -> tuple[Path, dict[str, Any], dict[str, str]]:
    """The adapter's folder, the run's settings that are used, and its prompt format."""
    if is_adapter(folder):
        found = folder if choice.is_plain else _exported(folder, choice, scratch)
        return found, _base_model(folder), _stored_format(folder)
    result = _result(folder)
    plain, checkpoints = folder / ADAPTER, (folder / CHECKPOINTS).is_dir()
    if choice.is_plain and is_adapter(plain) and result is not None:
        values, form = dict(result.config), dict(result.prompt_format)
        return plain, _of_use(values, folder), _stored_format(plain) or form
    if not checkpoints and not is_adapter(plain):
        early = f": it ended early ({result.failure})" if result and result.failure else ""
        raise StateError(
            f"{folder} has no adapter{early}. Give the output folder of a finished run, which has "
            f"{RESULT} and {ADAPTER}, or a PEFT folder"
        )
    if not checkpoints:
        if result is None:
            return plain, _base_model(plain), _stored_format(plain)
        source, values = plain, dict(result.config)
    else:
        source = folder
        values = dict(
            from_checkpoint(folder, best=choice.best, server_round=choice.server_round).settings
        )
    form = prompt_format(values)
    return _exported(source, choice, scratch), _of_use(values, folder), form


def _exported(source: Path, choice: Choice, scratch: Path) -> Path:
    export(
        source,
        scratch,
        best=choice.best,
        server_round=choice.server_round,
        silo=choice.silo,
        state_dir=choice.state_dir,
        run=choice.of_run,
    )
    return scratch


def _result(folder: Path) -> RunResult | None:
    path = folder / RESULT
    return read_result(path) if path.is_file() else None


def _of_use(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Of a run's settings those that are used, whatever other keys its app has."""
    if (task := values.get("model.task") or CAUSAL_LM) != CAUSAL_LM:
        raise ModelError(f"{folder} is for {task}, which answers no prompts: load it with PEFT")
    return {key: value for key, value in values.items() if key in _USED}


def _base_model(folder: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads((folder / CONFIG).read_bytes())
        name = values.get("base_model_name_or_path")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise AdapterError(f"{folder / CONFIG} cannot be read: {error}") from error
    return {"model.name": name} if name and isinstance(name, str) else {}


def _stored_format(folder: Path) -> dict[str, str]:
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found: Any = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("template"), str):
            raise ValueError("expected an object with a template")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path} cannot be read: {error}. Export the adapter again, or remove the file and "
            "say the format with -c, as in -c 'data.prompt=\"question\"'"
        ) from error
    return {str(key): str(value) for key, value in found.items()}
