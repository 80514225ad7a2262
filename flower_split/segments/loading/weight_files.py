"""The weight files of a model, in the safetensors format, of which single tensors are read.

Which files they are is decided as transformers decides it, so that what is trained here and what
stock code loads from the same folder are the same weights.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from flower_split.errors import WeightsError
from flower_split.segments.loading.extents import Extent, tensor_extents
from flower_split.segments.loading.source import Source
from flower_split.text_tables import read_json

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SUFFIXES = (".safetensors", ".safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DISTRIBUTED = "shard-*-model-*-of-*.safetensors"


class WeightFiles:
    """One safetensors file with a model's weights, or shards of it and their index.

    Args:
        source: Where it lies.
        named: File or index that the model's configuration names (`transformers_weights`); empty
            for `model.safetensors`, or else `model.safetensors.index.json`.

    Raises:
        WeightsError: there are no safetensors weights, or their index is broken.
    """

    path: Path
    """The weights' file, or the index of the shards."""

    def __init__(self, source: Source, named: str = "") -> None:
        self._source = source
        self.path = _named_file(source, named) if named else _stock_file(source)
        self._shards = _read_index(self.path) if self.path.suffix == ".json" else None

    @contextmanager
    def open(self, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
        """The tensors whose name is `wanted`, not yet read: `tensors[name][...]` reads one.

        Only the shards that hold one of them are kept open, or downloaded.

        Raises:
            WeightsError: a file is missing or broken, or a shard lacks a tensor.
        """
        with ExitStack() as stack:
            places = self._places(wanted)
            files = {path: stack.enter_context(_open(path)) for path in set(places.values())}
            yield {name: files[path].get_slice(name) for name, path in places.items()}

    def extents(self, wanted: Callable[[str], bool]) -> list[Extent]:
        """Where the tensors lie whose name is `wanted`.

        Raises:
            WeightsError: as for `open`.
        """
        places = self._places(wanted)
        found = {path: tensor_extents(path) for path in set(places.values())}
        return [found[path][name] for name, path in places.items()]

    def _places(self, wanted: Callable[[str], bool]) -> dict[str, Path]:
        """The file of every tensor whose name is `wanted`."""
        if self._shards is None:
            return dict.fromkeys(filter(wanted, _names(self.path)), self.path)
        index = {name: shard for name, shard in self._shards.items() if wanted(name)}
        places: dict[str, Path] = {}
        strays: set[str] = set()
        # As transformers: every shard that is named, in the order of the names, with all that is
        # in it, whatever the index says of it; of a tensor in several shards the last one counts.
        for shard in sorted(set(self._shards.values())):
            needed = next((name for name, holder in index.items() if holder == shard), None)
            held = {name: path for name, path in self._held(shard, needed).items() if wanted(name)}
            strays |= {name for name in held if index.get(name, shard) != shard}
            strays |= held.keys() & places.keys()
            places |= held
        if strays:
            name = min(strays)
            _tell(
                f"{self.path}: shards hold {len(strays)} tensors (first: {name!r}) that the index "
                f"places in others; the last shard with a tensor counts, {places[name].name} for "
                "this one, as transformers does"
            )
        if lost := index.keys() - places.keys():
            name = min(lost)
            raise WeightsError(
                f"{self.path.parent / index[name]} lacks the tensor {name!r} that "
                f"{self.path.name} says it holds; index and shards are not of the same checkpoint"
            )
        return places

    def _held(self, shard: str, needed: str | None) -> dict[str, Path]:
        """The tensors of a shard; none of one that nothing is needed of and that cannot be read.

        Args:
            shard: Its file name.
            needed: A tensor of it that is wanted; None where there is none.
        """
        if needed is None:
            path = self._source.folder / shard
            try:
                return dict.fromkeys(_names(path), path) if path.is_file() else {}
            except WeightsError:
                return {}
        found = self._source.find(shard)
        if found is None:
            raise WeightsError(
                f"{self.path} names the shard {shard!r}, which is not there; it holds "
                f"{needed!r}. Copy or download the whole checkpoint again"
            )
        return dict.fromkeys(_names(found), found)


def _stock_file(source: Source) -> Path:
    """The file of the weights, or the index of their shards, in transformers' order."""
    # A hub model's index came with its configuration, so it need not be asked for.
    index = source.folder / INDEX_FILE
    single = source.find(SINGLE_FILE, offline_is_absent=index.is_file())
    if next(source.folder.glob(_DISTRIBUTED), None) is not None:
        raise WeightsError(
            f"{source.folder} holds a distributed checkpoint ({_DISTRIBUTED}), which transformers "
            "would load; load it with AutoModelForCausalLM.from_pretrained and write it as one "
            "model with save_pretrained(folder)"
        )
    if single is None and not index.is_file():
        raise WeightsError(_without_weights(source))
    taken = single or index
    for left in (INDEX_FILE, *_PICKLES):
        if left != taken.name and (source.folder / left).is_file():
            _tell(
                f"{source.name} has {left} beside {taken.name}: its weights are taken from "
                f"{taken.name}, as transformers does",
                logging.WARNING if left == INDEX_FILE else logging.INFO,
            )
    return taken


def _named_file(source: Source, named: str) -> Path:
    """The file that the configuration names as `transformers_weights`."""
    inside = isinstance(named, str) and named.endswith(_SUFFIXES) and "\\" not in named
    if not inside or PurePosixPath(named).is_absolute() or ".." in PurePosixPath(named).parts:
        raise WeightsError(
            f"config.json of {source.name} names {named!r} as transformers_weights; expected a "
            f"file of the model's folder that ends in {' or '.join(_SUFFIXES)}"
        )
    path = source.find(named)
    if path is None:
        raise WeightsError(
            f"config.json of {source.name} names {named!r} as transformers_weights, which is not "
            "there; copy or download the whole checkpoint again, or delete the entry"
        )
    return path


def _without_weights(source: Source) -> str:
    """What is said of a folder without weights that can be read."""
    pickles = [name for name in _PICKLES if (source.folder / name).is_file()]
    others = sorted(path.name for path in source.folder.glob("*.safetensors"))
    found = ", found " + (pickles + others)[0] if pickles or others else ""
    return (
        f"{source.name} has no weights that can be read: expected {SINGLE_FILE}, or {INDEX_FILE} "
        f"and its shards{found}. Pickles (pytorch_model.bin) "
        "can run code when they are read and are refused; to convert one that you trust, load it "
        "with AutoModelForCausalLM.from_pretrained and write it with save_pretrained(folder). "
        "Other names, such as a variant's, are not looked for: load it so with variant=… and "
        "write it without"
    )


@lru_cache(maxsize=256)
def _tell(line: str, level: int = logging.WARNING) -> None:
    """Say it once a process, however many segments are loaded."""
    logger.log(level, line)


def _read_index(path: Path) -> dict[str, str]:
    """Names of the tensors, each with the shard that holds it."""
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise WeightsError(f"the index {path} cannot be read: {exc}") from exc
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"the index {path} has no weight_map from tensors to shards")
    for name, shard in shards.items():
        plain = isinstance(shard, str) and "/" not in shard and "\\" not in shard
        if not plain or not shard.endswith(".safetensors"):
            raise WeightsError(
                f"the index {path} names {shard!r} as the shard of {name!r}; expected the plain "
                "name of a .safetensors file beside it"
            )
    return shards


def _names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    with _open(path) as file:
        return list(file.keys())


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    # pread, not mmap: a tensor is read once, into memory of its own, and the model does not
    # depend on the file any more.
    try:
        file = safe_open(path, framework="pt", backend="pread")
    except (SafetensorError, OSError) as exc:
        raise WeightsError(
            f"{path} is not a readable safetensors file: {exc}. It may be truncated, or the "
            "pointer of a Git LFS file; copy or download it again"
        ) from exc
    with file:
        yield file
