"""A silo's state files as the versions up to now have written them, made without our own code."""

import hashlib
import json
import struct


def write_file(path, facts, tensors):
    """A safetensors file of float32 tensors whose metadata has a digest over all that it says."""
    digest = hashlib.sha256(json.dumps(sorted(facts.items())).encode())
    header, content = {}, b""
    for name, tensor in sorted(tensors.items()):
        data, shape = tensor.numpy().tobytes(), list(tensor.shape)
        digest.update(json.dumps([name, "torch.float32", shape]).encode() + data)
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        content += data
    header["__metadata__"] = {**facts, "digest": digest.hexdigest()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def write_session(folder, server_round, tag, tensors):
    """A state of `SplitSession` with rank 4 and alpha 8; personal tensors are named `kept:…`."""
    facts = {
        "format": "flower-split session state 1",
        "tag": tag,
        "round": str(server_round),
        "scaling": '{"r": 4, "alpha": 8.0, "rslora": false}',
    }
    write_file(folder / f"{server_round:08d}-{tag}.safetensors", facts, tensors)


def write_exchange(folder, server_round, tensors):
    """A state of `AdapterExchange` at scale 2, as it was before both wrote the same files."""
    facts = {"format": "flower-split-kept-1", "scale": "2.0"}
    write_file(folder / f"round-{server_round:08d}.safetensors", facts, tensors)
