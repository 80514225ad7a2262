"""Row 31: pickles offered as adapters or weights. Row 30 is in `tests/strategies`."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array
from tiny_models import tiny_model

from flower_split.adapters import load_adapter
from flower_split.adapters.reading import read_adapter_folder
from flower_split.checkpoint import Checkpoint, read_checkpoint
from flower_split.checkpoint.archive import write_checkpoint
from flower_split.client.state.state_file import StateFile
from flower_split.errors import FlowerSplitError
from flower_split.segments import load_client_model, load_trunk, split_model
from flower_split.transport.arrays import read_array

CUTS = {"bottom_layers": 1, "top_layers": 1}


class Canary:
    """Makes a folder at `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def evil(canary: Path) -> bytes:
    """A pickle that leaves the canary's folder."""
    data = pickle.dumps(Canary(canary))
    pickle.loads(data)
    assert canary.is_dir()
    canary.rmdir()
    return data


def object_array(evil: bytes) -> bytes:
    """What `numpy.save` makes of objects, which `numpy.load` would unpickle."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    return file.getvalue() + evil


def of_an_array(evil: bytes, folder: Path) -> None:
    read_array("a", Array("float32", (1,), "numpy.ndarray", evil))


def of_an_array_of_objects(evil: bytes, folder: Path) -> None:
    read_array("a", Array("object", (1,), "numpy.ndarray", object_array(evil)))


def of_a_pickled_array(evil: bytes, folder: Path) -> None:
    read_array("a", Array("float32", (1,), "pickle", evil))


def of_an_adapter(evil: bytes, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (folder / "adapter_model.bin").write_bytes(evil)
    read_adapter_folder(folder)


def of_an_adapter_to_compute_with(evil: bytes, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (folder / "adapter_model.bin").write_bytes(evil)
    load_adapter(split_model(tiny_model(), 1, 1)[0], folder)


def of_an_adapter_under_a_good_name(evil: bytes, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (folder / "adapter_model.safetensors").write_bytes(evil)
    load_adapter(split_model(tiny_model(), 1, 1)[0], folder)


def of_a_silos_weights(evil: bytes, folder: Path) -> None:
    tiny_model().config.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(evil)
    load_client_model(folder, **CUTS)


def of_the_trunks_weights(evil: bytes, folder: Path) -> None:
    tiny_model().config.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(evil)
    load_trunk(folder, **CUTS)


def of_a_checkpoint(evil: bytes, folder: Path) -> None:
    path = write_checkpoint(Checkpoint(server_round=1), folder)
    (path / "arrays.safetensors").write_bytes(evil)
    read_checkpoint(path)


def of_a_session_state(evil: bytes, folder: Path) -> None:
    file = StateFile.at(folder, 1, "a" * 64)
    file.path.write_bytes(evil)
    file.read()


OFFERS = (
    of_an_array,
    of_an_array_of_objects,
    of_a_pickled_array,
    of_an_adapter,
    of_an_adapter_to_compute_with,
    of_an_adapter_under_a_good_name,
    of_a_silos_weights,
    of_the_trunks_weights,
    of_a_checkpoint,
    of_a_session_state,
)


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.__name__)
def test_row_31_a_pickle_in_the_place(
    offer: Callable[[bytes, Path], None], evil: bytes, canary: Path, tmp_path: Path
) -> None:
    """Refused by its format, and not opened: the canary stays away."""
    folder = tmp_path / "offered"
    folder.mkdir()
    with pytest.raises(FlowerSplitError):
        offer(evil, folder)
    assert not canary.exists()
