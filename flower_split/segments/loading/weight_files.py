"""The weight files of a model, in the safetensors format, of which single tensors are read."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flower_split.errors import WeightsError
from flower_split.segments.loading.extents import Extent, tensor_extents
from flower_split.segments.loading.source import Source

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class WeightFiles:
    """One safetensors file with a model's weights, or shards of it and their index.

    Args:
        source: Where it lies.

    Raises:
        WeightsError: there are no safetensors weights, or their index is broken.
    """

    path: Path
    """The weights' file, or the index of the shards."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # A hub model's index came with its configuration, so it need not be asked for.
        index = source.folder / INDEX_FILE
        self._shards = _read_index(index) if index.is_file() else None
        self.path = _single_file(source) if self._shards is None else index

    @contextmanager
    def open(self, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
        """The tensors whose name is `wanted`, not yet read: `tensors[name][...]` reads one.

        Only the shards that hold one of them are opened, or downloaded.

        Raises:
            WeightsError: a file is missing or broken, or a shard lacks a tensor.
        """
        with ExitStack() as stack:
            tensors: dict[str, Any] = {}
            for path, names in self._files(wanted).items():
                file = stack.enter_context(_open(path))
                held = dict.fromkeys(file.keys())
                for name in held if names is None else names:
                    if name not in held:
                        raise WeightsError(
                            f"{path} lacks the tensor {name!r} that {self.path.name} says it "
                            "holds; index and shards are not of the same checkpoint"
                        )
                    if wanted(name):
                        tensors[name] = file.get_slice(name)
            yield tensors

    def extents(self, wanted: Callable[[str], bool]) -> list[Extent]:
        """Where the tensors lie whose name is `wanted`.

        Raises:
            WeightsError: as for `open`.
        """
        with self.open(wanted) as tensors:
            places: dict[str, Extent] = {}
            for path, names in self._files(wanted).items():
                found = tensor_extents(path)
                places |= found if names is None else {name: found[name] for name in names}
            return [places[name] for name in tensors]

    def _files(self, wanted: Callable[[str], bool]) -> Mapping[Path, list[str] | None]:
        """Files with the names to take from each; None for all that are wanted."""
        if self._shards is None:
            return {self.path: None}
        files: dict[str, list[str]] = {}
        for name, shard in self._shards.items():
            if wanted(name):
                files.setdefault(shard, []).append(name)
        found: dict[Path, list[str] | None] = {}
        for shard, names in files.items():
            path = self._source.find(shard)
            if path is None:
                raise WeightsError(
                    f"{self.path} names the shard {shard!r}, which is not there; it holds "
                    f"{names[0]!r}. Copy or download the whole checkpoint again"
                )
            found[path] = names
        return found


def _single_file(source: Source) -> Path:
    path = source.find(SINGLE_FILE)
    if path is not None:
        return path
    pickles = [name for name in _PICKLES if (source.folder / name).is_file()]
    raise WeightsError(
        f"{source.name} has no weights that can be read: expected {SINGLE_FILE}, or {INDEX_FILE} "
        f"and its shards{', found ' + pickles[0] if pickles else ''}. Pickles (pytorch_model.bin) "
        "can run code when they are read and are refused; to convert one that you trust, load it "
        "with AutoModelForCausalLM.from_pretrained and write it with save_pretrained(folder)"
    )


def _read_index(path: Path) -> dict[str, str]:
    """Names of the tensors, each with the shard that holds it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
