"""Staging: tensors between the host and a GPU, copied while the GPU computes something else.

::

    compute stream    forward 0 ●  forward 1 ●  forward 2 …       ●  `mark_ready`
    sender's stream              encode, copy 0   encode, copy 1   waits for ● alone
    receiver's stream   copy 1      copy 2 …                       the compute stream waits for it

On CUDA the host's side of a copy is pinned memory, and copies run on streams of the calling
thread's own. A tensor that leaves is waited for up to the mark that its maker set, and not up to
what has been asked of the GPU since. Elsewhere a tensor is moved as it is, and one that is where it
shall be is not copied.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# A thread's streams, by direction and device: two threads must not wait for each other's copies.
_own = threading.local()
_ready = WeakTensorKeyDictionary()


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device` and in `dtype`; itself where it is both. The caller does not wait.

    What the calling thread computes from now on waits for the copy.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device=device, dtype=dtype)
    compute, own = torch.cuda.current_stream(device), _stream("in", device)
    with torch.cuda.stream(own):
        arrived = tensor.pin_memory().to(device, non_blocking=True)
    compute.wait_stream(own)
    # Its memory is of the stream that copied, and must stay its own until it is computed with.
    arrived.record_stream(compute)
    return arrived.to(dtype=dtype)


def to_host(tensor: Tensor) -> Tensor:
    """`tensor` on the CPU, complete; itself where it is there. It waits for the current stream."""
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def mark_ready(tensor: Tensor) -> Tensor:
    """Note that all of what makes `tensor` has been asked of the GPU; returns it."""
    if tensor.device.type == "cuda":
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(tensor.device))
        _ready[tensor] = event
    return tensor


@contextmanager
def beside_compute(tensor: Tensor) -> Iterator[None]:
    """What is done to `tensor` meanwhile waits for what makes it, and for nothing else.

    The caller keeps the tensor until it has the result on the host. Without a mark, everything
    that the current stream has been asked for until now is waited for.
    """
    if tensor.device.type != "cuda":
        yield
        return
    own, event = _stream("out", tensor.device), _ready.get(tensor)
    if event is None:
        own.wait_stream(torch.cuda.current_stream(tensor.device))
    else:
        own.wait_event(event)
    with torch.cuda.stream(own):
        yield


def _stream(direction: str, device: torch.device) -> torch.cuda.Stream:
    streams: dict[tuple[str, torch.device], torch.cuda.Stream] | None
    streams = getattr(_own, "streams", None)
    if streams is None:
        streams = _own.streams = {}
    key = (direction, device)
    if key not in streams:
        streams[key] = torch.cuda.Stream(device)
    return streams[key]
