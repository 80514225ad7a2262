"""The model's folder of a pack: links into the cache, which every loader can read."""

import errno
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from flower_split.delivery.cache import REMEDY, PartCache
from flower_split.delivery.manifest import Manifest
from flower_split.errors import DeliveryError, UnsafeFolderError, WireError
from flower_split.private_files import make_private, read_whole, write_new

# A file name of the format's own, as `segments.loading` and transformers look for it.
_INDEX = "model.safetensors.index.json"
_ATTEMPTS = 5


def model_folder(cache: PartCache, digest: str, manifest: Manifest) -> Path:
    """A folder of weights and small files: the pack's parts, which the cache holds.

    It lies in the cache under the pack's digest. One that is not as it must be is made anew.

    Raises:
        WireError: the pack's weights are no safetensors files, or have a tensor twice.
        DeliveryError: the folder cannot be made.
    """
    links = {name: item.digest for name, item in manifest.files.items()}
    links |= {f"{item.digest}.safetensors": item.digest for item in manifest.weights}
    targets = {name: os.path.join("..", "..", "parts", part) for name, part in links.items()}
    index = _index(cache, manifest)
    models = cache.folder / "models"
    folder = models / digest
    try:
        make_private(models, below=cache.folder, remedy=REMEDY)
        for _ in range(_ATTEMPTS):
            if _is_as_it_must_be(folder, targets, index):
                return folder
            _put(folder, targets, index)
    except UnsafeFolderError as exc:
        raise DeliveryError(f"the model's folder cannot be made: {exc}") from exc
    except OSError as exc:
        raise DeliveryError(f"the model's folder {folder} cannot be made: {exc.strerror}") from exc
    raise DeliveryError(f"the model's folder {folder} is changed by another program all the time")


def _index(cache: PartCache, manifest: Manifest) -> str:
    """Index of the weights, made of what the files themselves say."""
    places: dict[str, str] = {}
    for item in manifest.weights:
        try:
            with safe_open(cache.path(item.digest), framework="np") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as exc:
            raise WireError(
                f"a part of the model that the server delivered is no safetensors file: {exc}"
            ) from exc
        for name in names:
            if name in places:
                raise WireError(f"the server delivered the tensor {name!r} twice")
            places[name] = f"{item.digest}.safetensors"
    return json.dumps({"metadata": {}, "weight_map": places}, sort_keys=True)


def _is_as_it_must_be(folder: Path, targets: dict[str, str], index: str) -> bool:
    try:
        if {path.name for path in folder.iterdir()} != {*targets, _INDEX}:
            return False
        if any(os.readlink(folder / name) != target for name, target in targets.items()):
            return False
        # It is known by its links; a link in its place would lead to what others may change.
        return not folder.is_symlink() and read_whole(folder / _INDEX) == index.encode()
    except OSError:
        return False


def _put(folder: Path, targets: dict[str, str], index: str) -> None:
    """Make the folder aside and move it to its place, from which a broken one is moved away."""
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        made = aside / "made"
        made.mkdir(mode=0o700)
        for name, target in targets.items():
            (made / name).symlink_to(target)
        write_new(made / _INDEX, index.encode())
        with suppress(FileNotFoundError):
            folder.rename(aside / "broken")
        try:
            made.rename(folder)
        except OSError as exc:  # another process was faster
            if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
