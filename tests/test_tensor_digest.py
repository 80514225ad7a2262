"""The digest of tensors tells names, order, dtypes, shapes and bits apart, and nothing else."""

import torch

from flower_split.tensor_digest import tensor_digest

ONE = torch.arange(6, dtype=torch.float32)


def test_equal_tensors_have_equal_digests_however_they_lie_in_memory() -> None:
    turned = ONE.reshape(2, 3).T.contiguous().T
    assert not turned.is_contiguous()
    assert tensor_digest([("a", turned)]) == tensor_digest([("a", ONE.reshape(2, 3))])
    assert tensor_digest([("a", ONE.clone().requires_grad_())]) == tensor_digest([("a", ONE)])


def test_whatever_differs_gives_another_digest() -> None:
    others = [
        [("b", ONE)],
        [("a", ONE.to(torch.float64))],
        [("a", ONE.view(torch.int32))],
        [("a", ONE.reshape(2, 3))],
        [("a", ONE + 1)],
        [("a", torch.tensor(0.0))],
        [("a", torch.tensor(-0.0))],
        [("a", ONE), ("b", ONE)],
        [("b", ONE), ("a", ONE)],
        [("a", torch.zeros(0))],
        [],
    ]
    found = [tensor_digest(one) for one in ([("a", ONE)], *others)]
    assert len(set(found)) == len(found)
