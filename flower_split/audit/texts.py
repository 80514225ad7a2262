"""Texts of an audit: those that are attacked, and public ones that an attacker learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flower_split.audit.records import canary_records, identifiers, synthetic_records
from flower_split.audit.settings import LEAST_DOCUMENTS, AuditSettings
from flower_split.config.data import DataConfig
from flower_split.config.sections import SplitConfig
from flower_split.config.seeds import derive_seed
from flower_split.data.batching import collate
from flower_split.data.callables import is_reference
from flower_split.data.sequences import TokenizedDataset
from flower_split.data.silo import load_silo
from flower_split.errors import DataError
from flower_split.optimization.loss import IGNORED
from flower_split.quickstart.corpora import SILO_PACKAGES, package_docstrings
from flower_split.segments import TableSizes

LEAST_TOKENS = 4
LEAST_PUBLIC = 16
CANARY_TOKENS = 32
"""Of a canary at most: none of its number is cut off."""
FREQUENT = 50
"""The most frequent tokens of the public texts, which are no content."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """N texts in rows of T tokens, as the run's own code makes them."""

    data: TokenizedDataset
    ids: Tensor
    """(N, T) int64; padding where `mask` is false."""
    mask: Tensor
    """(N, T) of bool."""
    learnt: Tensor
    """(N, T) of bool: whether a token is the target of a loss."""
    scored: Tensor
    """(N, T) of bool: whether finding the token counts, as it is real and none that says only
    where a text begins or ends."""
    origin: str
    """Where they are from, in words."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The microbatch of the given rows, as training makes it."""
        return collate(self.data, rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditTexts:
    """Both kinds of texts, and what tokens are."""

    victims: Documents
    public: Documents
    vocabulary: int
    content: Tensor
    """(V,) of bool: tokens with a letter or a digit, without the most frequent ones."""
    special: Tensor
    """(V,) of bool."""
    prior: Tensor
    """(V,) float32: how often the public texts have each token; never 0."""
    tokenizer: PreTrainedTokenizerBase

    def decoded(self, ids: Tensor) -> str:
        """The text of token ids, (T,)."""
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def victim(self, row: int) -> str:
        """The text of a victim, as far as it is looked at."""
        victims = self.victims
        return self.decoded(victims.ids[row][victims.mask[row]])

    @cached_property
    def identifiers(self) -> list[list[str]]:
        """Of every victim."""
        return [identifiers(self.victim(row)) for row in range(len(self.victims))]


def load_texts(
    config: SplitConfig,
    settings: AuditSettings,
    tokenizer: PreTrainedTokenizerBase,
    tables: TableSizes,
    *,
    data: str = "",
    public: str = "",
) -> AuditTexts:
    """The texts of an audit.

    Args:
        config: The run's; its `data` section says how a row becomes a text.
        settings: How many.
        tokenizer: The model's.
        tables: What the model knows.
        data: The user's own data, attacked; empty for that of `config`, or else for records that
            are made up.
        public: What an attacker learns from; empty for documentation of installed packages.

    Raises:
        DataError: data is missing or broken, or there is too little of it.
    """
    length = min(settings.tokens, config.train.max_length)
    path = data or config.data.path
    victims = _documents(
        _own_shape(config, path) if path else DataConfig(eval_fraction=0.0),
        None if path else synthetic_records(settings.documents, settings.seed),
        tokenizer,
        tables,
        count=settings.documents,
        length=length,
        seed=settings.seed,
        origin=path or "records that are made up, with planted identifiers",
    )
    if len(victims) < LEAST_DOCUMENTS:
        raise DataError(
            f"{victims.origin} has {len(victims)} texts of {LEAST_TOKENS} tokens or more, and an "
            f"audit needs {LEAST_DOCUMENTS}: name more data with --data"
        )
    known = {tuple(row.tolist()) for row in victims.data.sequences}
    learned = _documents(
        _own_shape(config, public) if public else DataConfig(eval_fraction=0.0),
        None if public else _documentation(),
        tokenizer,
        tables,
        count=settings.public_documents,
        length=length,
        seed=settings.seed + 1,
        origin=public or f"documentation of {', '.join(SILO_PACKAGES)}",
        without=known,
    )
    if len(learned) < LEAST_PUBLIC:
        raise DataError(
            f"{learned.origin} has {len(learned)} texts that are not attacked themselves, and an "
            f"inverter learns from {LEAST_PUBLIC} at least: name more with --public"
        )
    vocabulary = tables.tokens
    counts = torch.bincount(learned.ids[learned.scored], minlength=vocabulary)[:vocabulary].float()
    special = torch.zeros(vocabulary, dtype=torch.bool)
    special[[one for one in tokenizer.all_special_ids if one < vocabulary]] = True
    return AuditTexts(
        victims=victims,
        public=learned,
        vocabulary=vocabulary,
        content=_content(tokenizer, counts),
        special=special,
        prior=(counts + 1) / (counts + 1).sum(),
        tokenizer=tokenizer,
    )


def canary_documents(texts: AuditTexts, count: int, *, seed: int) -> Documents:
    """`count` records that are made up, each with a random number."""
    return _documents(
        DataConfig(eval_fraction=0.0),
        canary_records(count, derive_seed(seed, "canaries")),
        texts.tokenizer,
        TableSizes(tokens=texts.vocabulary, positions=None),
        count=count,
        length=CANARY_TOKENS,
        seed=seed,
        origin="canaries",
    )


def _own_shape(config: SplitConfig, path: str) -> DataConfig:
    """The run's data section for all of `path`, one text a row."""
    changed: dict[str, Any] = {"path": path, "eval_path": "", "eval_split": ""}
    return replace(
        config.data,
        **changed,
        eval_fraction=0.0,
        packing=False,
        partitioner="none",
        partition_by="",
        max_examples=0,
    )


def _documentation() -> list[dict[str, str]]:
    found = list[dict[str, str]]()
    for package in SILO_PACKAGES:
        try:
            found += [{"text": text} for text in package_docstrings(package)]
        except DataError:  # one that is not installed, or without its sources
            continue
    return found


def _documents(
    shape: DataConfig,
    rows: list[dict[str, str]] | None,
    tokenizer: PreTrainedTokenizerBase,
    tables: TableSizes,
    *,
    count: int,
    length: int,
    seed: int,
    origin: str,
    without: set[tuple[int, ...]] | None = None,
) -> Documents:
    # A function may return the data of one silo alone: of the first one.
    silos = 1 if rows is None and is_reference(shape.path) else None
    silo = load_silo(
        shape,
        tokenizer,
        partition_id=silos and 0,
        num_partitions=silos,
        max_length=length,
        seed=seed,
        source=rows,
        tables=tables,
    )
    data = silo.train
    if not isinstance(data, TokenizedDataset):
        raise DataError(f"{origin} makes no sequences of tokens, of which an audit is")
    generator = torch.Generator().manual_seed(derive_seed(seed, "audit"))
    order: list[int] = torch.randperm(len(data), generator=generator).tolist()
    without, kept = without or set(), list[int]()
    for row in order:
        ids = data.sequences[row]
        if len(ids) >= LEAST_TOKENS and tuple(ids.tolist()) not in without:
            kept.append(row)
        if len(kept) == count:
            break
    chosen = data.select(kept)
    special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.int64)
    if not kept:
        empty = torch.zeros(0, length, dtype=torch.bool)
        ids = torch.zeros(0, length, dtype=torch.int64)
        return Documents(
            data=chosen, ids=ids, mask=empty, learnt=empty, scored=empty, origin=origin
        )
    batch = collate(chosen, range(len(kept)))
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    return Documents(
        data=chosen,
        ids=ids,
        mask=mask,
        learnt=batch["labels"] != IGNORED,
        scored=mask & ~torch.isin(ids, special),
        origin=origin,
    )


def _content(tokenizer: PreTrainedTokenizerBase, counts: Tensor) -> Tensor:
    """Tokens with a letter or a digit, without the `FREQUENT` most frequent ones."""
    vocabulary = len(counts)
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(vocabulary, len(tokenizer)))))
    held = torch.zeros(vocabulary, dtype=torch.bool)
    for place, piece in enumerate(pieces):
        held[place] = piece is not None and any(one.isalnum() for one in str(piece))
    held[counts.topk(min(FREQUENT, vocabulary)).indices] = False
    return held
