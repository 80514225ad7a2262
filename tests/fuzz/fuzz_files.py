"""Harnesses of files: a silo's session state, and a run's checkpoints."""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from fuzz_choices import Choices
from safetensors.numpy import save

from flower_split.checkpoint import Checkpoint, decode, encode
from flower_split.checkpoint.archive import (
    ARRAYS,
    MANIFEST,
    STATE,
    read_checkpoint,
    write_checkpoint,
)
from flower_split.checkpoint.manifest import digest, parse, render
from flower_split.client.state.state_file import FORMAT, StateFile
from flower_split.errors import StateError

_FOLDER = Path(tempfile.mkdtemp(prefix="flower-split-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_TAG = "ab" * 32
_STATE = StateFile.at(_FOLDER, 3, _TAG)
_TENSORS = {
    "m.lora_A.weight/exp_avg": torch.ones(2, 3),
    "m.lora_A.weight/step": torch.tensor(4.0),
    "kept:m.lora_B.weight": torch.arange(4, dtype=torch.float32),
}
_FACTS = {
    "format": FORMAT,
    "tag": _TAG,
    "round": "3",
    "scaling": json.dumps({"r": 2, "alpha": 4.0, "rslora": False}),
}


def _signed(facts: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """`facts` with the digest that `StateFile` looks for: SHA-256 of all that the file says."""
    made = hashlib.sha256(json.dumps(sorted(facts.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        made.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        made.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return {**facts, "digest": made.hexdigest()}


def _damaged(content: bytes, choices: Choices) -> bytes:
    changed = bytearray(content)
    while choices.more:
        at = choices.below(len(changed) + 1)
        changed[at : at + choices.below(6)] = choices.bytes(8)
    return bytes(changed)


def session_state(data: bytes) -> None:
    """`StateFile.read`: a file with damage, or an intact one that says anything."""
    from safetensors.torch import save as save_torch

    choices = Choices(data)
    if choices.yes():
        content = _damaged(save_torch(_TENSORS, metadata=_signed(_FACTS, _TENSORS)), choices)
    else:
        facts, tensors = dict(_FACTS), dict(_TENSORS)
        for _ in range(choices.below(4)):
            facts[choices.of((*_FACTS, choices.text() or "x"))] = choices.text()
        for _ in range(choices.below(3)):
            dtype = choices.of((torch.float32, torch.bool, torch.int8, torch.bfloat16))
            shape = [choices.below(4) for _ in range(choices.below(4))]
            tensors[choices.text() or "t"] = torch.zeros(shape, dtype=dtype)
        content = save_torch(tensors, metadata=_signed(facts, tensors))
    _STATE.path.write_bytes(content)
    try:
        state = _STATE.read(most_bytes=1 << 16)
    except StateError:
        return
    assert sum(t.nbytes for t in state.moments.values()) <= len(content)


class _Kept:
    """What an inner strategy may keep."""

    def __init__(self) -> None:
        self.moments = {"a": np.ones((2, 3)), "b": np.arange(3)}
        self.norm, self.rounds, self.names = 0.5, [1, 2, 3], ("x", None, True)


_ENCODED = encode(_Kept(), "inner")
_WRITTEN = Checkpoint(
    server_round=3,
    arrays={**_ENCODED.arrays, "adapter/m": np.ones((2, 2), np.float32)},
    state={"inner": _ENCODED.tree, "lineage": "0" * 32},
)
_CHECKPOINT = write_checkpoint(_WRITTEN, _FOLDER)
_GOOD = {name: (_CHECKPOINT / name).read_bytes() for name in (ARRAYS, STATE, MANIFEST)}


def checkpoint(data: bytes) -> None:
    """`read_checkpoint`, and the decoding of what a strategy kept, of files with any damage."""
    choices = Choices(data)
    files, name = dict(_GOOD), choices.of((ARRAYS, STATE, MANIFEST))
    kind = choices.below(4)
    if kind == 0:
        files[name] = choices.rest()
    elif kind == 1 and name == STATE:
        tree = json.loads(files[STATE])
        while choices.more:
            _change(tree, choices)
        files[STATE] = json.dumps(tree).encode()
    elif kind == 1 and name == MANIFEST:
        whole = parse(files[MANIFEST], "the manifest")
        while choices.more:
            _change(whole, choices)
        files[MANIFEST] = render(whole)
    elif kind == 2 and name == ARRAYS:
        size, dtype = choices.below(5), choices.of(("float32", "int64", "bool"))
        files[ARRAYS] = save({choices.text() or "a": np.zeros(size, dtype)})
    else:
        files[name] = _damaged(files[name], choices)
    if name != MANIFEST:  # as if it had been written so: the digests are those of the damage
        whole = parse(_GOOD[MANIFEST], "the manifest")
        whole["files"][name] = {"bytes": len(files[name]), "sha256": digest(files[name])}
        files[MANIFEST] = render(whole)
    for one, content in files.items():
        (_CHECKPOINT / one).write_bytes(content)
    try:
        found = read_checkpoint(_CHECKPOINT)
        decode(found.state.get("inner"), found.arrays, onto=_Kept())
    except StateError as error:
        assert len(str(error)) < 4000


def _change(node: object, choices: Choices) -> None:
    """Replace or remove something in a tree of JSON."""
    removes = choices.below(6) == 1
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = choices.of(keys)
        if isinstance(node[key], dict | list) and choices.yes():
            node = node[key]
            continue
        options = (None, True, -1, 0, 2**70, 1.5, "", "x", [], {}, {"kind": "list"}, node[key])
        kinds = ("same", "dict", "object", "array", "scalar", "enum", "given", "code", "float")
        options += tuple({"kind": kind, "class": "builtins.int", "id": 1} for kind in kinds)
        if removes:
            del node[key]
        else:
            node[key] = choices.of(options)
        return


SEEDS = {
    "session-state": lambda: [bytes([1, 9, 2, 3]), bytes([0, 2, 1, 1, 5, 3, 1, 16, 1, 2])],
    "checkpoint": lambda: [bytes([n, k, 5, 2, 7, 1]) for n in range(3) for k in range(4)],
}
HARNESSES = {"session-state": session_state, "checkpoint": checkpoint}
