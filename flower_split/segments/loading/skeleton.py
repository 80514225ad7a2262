"""The skeleton of a model: what its configuration alone tells."""

import contextlib
import copy
from pathlib import Path
from typing import cast

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flower_split.config.tasks import CAUSAL, SEQUENCE_CLASSIFICATION, Task
from flower_split.errors import UnsupportedFamilyError, WeightsError
from flower_split.segments.loading.model_folder import refuse_adapter_beside, without_config
from flower_split.segments.loading.source import Source, resolve_source
from flower_split.segments.loading.stock_loader import STOCK_LOCK
from flower_split.segments.stock_classes import auto_class, stock_class, task_of
from flower_split.text_tables import read_json

_EXPERTS = ("eager", "grouped_mm", "batched_mm")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


def load_skeleton(
    source: str | Path | PreTrainedConfig, revision: str = "", task: Task = CAUSAL
) -> PreTrainedModel:
    """The whole uncut model on the meta device: names, shapes and modules, but no weights.

    Args:
        source: As for `resolve_source`, or a configuration.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        task: Of the model; a configuration names its own.

    Raises:
        WeightsError: there is no such model, or its configuration cannot be read.
        UnsupportedFamilyError: transformers has no such model for the task.
    """
    if isinstance(source, PreTrainedConfig):
        return make_skeleton(source)
    return make_skeleton(read_config(resolve_source(source, revision), task))


def load_tokenizer(source: str | Path, revision: str = "") -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Args:
        source: As for `resolve_source`.
        revision: Commit, tag or branch on the hub; empty for the default branch.

    Raises:
        WeightsError: there is no such model, or it has no tokenizer that can be read.
    """
    resolved = resolve_source(source, revision)
    # Without its files, transformers makes an empty tokenizer for some families.
    if not any(True for pattern in _TOKENIZER_FILES for _ in resolved.folder.glob(pattern)):
        raise WeightsError(
            f"{resolved.name!r} has no tokenizer: expected tokenizer.json in {resolved.folder}; "
            "write it there with the tokenizer's save_pretrained(folder)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(resolved.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as exc:  # the tokenizers library raises bare Exception for a broken file
        raise WeightsError(
            f"the tokenizer in {resolved.folder} cannot be read: {type(exc).__name__}: {exc}"
        ) from exc
    return cast(PreTrainedTokenizerBase, tokenizer)


def read_config(source: Source, task: Task = CAUSAL) -> PreTrainedConfig:
    """The configuration of a model, which names the stock class of the task.

    What it says of kernels is left out: whoever makes a model of it chooses them.

    Raises:
        WeightsError: there is none, it cannot be read, or an adapter lies beside it.
        UnsupportedFamilyError: transformers does not know the model's family, or has no model of
            it for the task.
    """
    path = source.find("config.json")
    if path is None:
        raise WeightsError(without_config(source))
    refuse_adapter_beside(source)
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise WeightsError(f"{path} cannot be read: {exc}") from exc
    family = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(family, str):
        raise WeightsError(f"{path} names no model_type; expected a transformers model's")
    try:
        config = AutoConfig.from_pretrained(
            str(source.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as exc:  # configurations check themselves, each with errors of its own
        if family not in CONFIG_MAPPING:
            raise UnsupportedFamilyError(
                f"model family {family!r} of {source.name!r} is not one of transformers; models "
                "with code of their own cannot be cut"
            ) from exc
        raise WeightsError(
            f"{path} is no valid configuration of {family!r}: {type(exc).__name__}: {exc}"
        ) from exc
    config._attn_implementation = None
    experts = config._experts_implementation
    if experts not in (None, *_EXPERTS):
        raise WeightsError(
            f"{path} sets experts_implementation to {experts!r}, expected one of "
            f"{', '.join(_EXPERTS)}, which need no further package; change it, or delete the entry"
        )
    if task != CAUSAL:
        _set_task(config, task, source)
    elif task_of(config) != CAUSAL.name:
        config.architectures = None
    return cast(PreTrainedConfig, config)


def _set_task(config: PreTrainedConfig, task: Task, source: Source) -> None:
    trained = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    unnamed = trained == tuple(f"LABEL_{number}" for number in range(len(trained)))
    if task.classifies and task_of(config) == task.name and not unnamed and trained != task.labels:
        raise WeightsError(
            f"{source.name!r} is a classifier with the labels {', '.join(trained)}, and "
            f"model.labels is {', '.join(task.labels)}: give its own, in the same order, or take a "
            "checkpoint without a head"
        )
    kind = getattr(config, "problem_type", None)
    if task.name == SEQUENCE_CLASSIFICATION and len(task.labels) > 1 and kind not in (None, _ONE):
        raise WeightsError(
            f"config.json of {source.name!r} sets problem_type to {kind!r}, and a text has one of "
            "the labels that model.task tells apart: take another checkpoint, or delete the entry"
        )
    config.architectures = [stock_class(config, task.name).__name__]
    if task.classifies:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: number for number, label in enumerate(task.labels)}
    if task.name == SEQUENCE_CLASSIFICATION and config.pad_token_id is None:
        # A decoder classifies by the last token that is no padding, and must know it as such.
        with contextlib.suppress(WeightsError):
            config.pad_token_id = load_tokenizer(source.folder).pad_token_id


_STOCK_SAYS = (
    *(ImportError, ValueError, RuntimeError, AssertionError),
    *(TypeError, LookupError, ArithmeticError, AttributeError),
)
"""What stock code raises where a configuration makes no model."""
_ONE = "single_label_classification"
"""transformers' `problem_type` of labels of which each text has one."""


def make_skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The whole uncut model of `config` on the meta device.

    Raises:
        WeightsError: transformers makes no model of it here.
        UnsupportedFamilyError: transformers has no such model for the task that it names.
    """
    stock_class(config)
    auto = auto_class(config)
    try:
        with STOCK_LOCK, torch.device("meta"):
            return cast(PreTrainedModel, auto.from_config(copy.deepcopy(config)))
    except _STOCK_SAYS as exc:
        raise WeightsError(
            f"no {config.model_type} model can be made of the config.json of "
            f"{config.name_or_path!r} here: {type(exc).__name__}: {exc}"
        ) from exc
