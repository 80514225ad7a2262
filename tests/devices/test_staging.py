"""Staging: nothing is copied where nothing must move; on CUDA, copies are beside the compute."""

import pytest
import torch

from flower_split.devices import beside_compute, mark_ready, to_device, to_host

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA")


def test_on_the_cpu_every_tensor_is_passed_on_as_it_is() -> None:
    tensor = torch.randn(2, 3)
    assert to_device(tensor, CPU) is tensor
    assert to_device(tensor, CPU, torch.float32) is tensor
    assert to_host(tensor) is tensor
    assert mark_ready(tensor) is tensor
    with beside_compute(tensor):
        pass


def test_a_tensor_is_moved_and_cast() -> None:
    moved = to_device(torch.randn(2, 3), torch.device("meta"), torch.bfloat16)
    assert (moved.device.type, moved.dtype, moved.shape) == ("meta", torch.bfloat16, (2, 3))


@needs_cuda
def test_there_and_back_on_cuda() -> None:
    device = torch.device("cuda", 0)
    tensor = torch.randn(64, 64)
    there = mark_ready(to_device(tensor, device, torch.float64))
    with beside_compute(there):
        back = to_host(there.float())
    assert back.is_pinned()
    assert torch.equal(back, tensor)


@needs_cuda
def test_a_tensor_leaves_while_what_was_asked_later_still_computes() -> None:
    device = torch.device("cuda", 0)
    big = torch.randn(8192, 8192, device=device)
    first = mark_ready(big[:64, :64] * 2)
    for _ in range(50):
        big = big @ big / 8192
    done = torch.cuda.Event()
    done.record()
    with beside_compute(first):
        to_host(first)
    assert not done.query()  # seconds of products lie ahead still
    torch.cuda.synchronize()
