"""Rows with adapters of their own come out of a layer as PEFT's own mixing has them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flower_split.adapters.mixing import RowMixer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 9)
        self.two = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(torch.tanh(self.one(x)))
        return out


def wrapped(ranks: list[int]) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=ranks[0], target_modules=["one", "two"]), "silo0")
    for number, rank in enumerate(ranks[1:], 1):
        config = LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["one", "two"])
        model.add_adapter(f"silo{number}", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
            parameter.requires_grad_(True)
    return model.eval()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("ranks", "rows"), [([3, 3, 3], [2, 2, 2]), ([3, 1, 8], [2, 2, 2]), ([3, 3, 3], [1, 4, 2])]
)
def test_outputs_and_gradients_are_those_of_pefts_own_mixing(
    ranks: list[int], rows: list[int], flat: bool
) -> None:
    model = wrapped(ranks)
    names = [f"silo{number}" for number in range(len(ranks))]
    x = torch.randn(sum(rows), 5, 6)
    each = [name for name, count in zip(names, rows, strict=True) for _ in range(count)]
    expected = model(x, adapter_names=each)
    weights = torch.randn_like(expected)
    tensors = [p for n, p in model.named_parameters() if "lora_" in n]
    wanted = torch.autograd.grad(expected, tensors, weights)
    mixer = RowMixer([m for m in model.modules() if isinstance(m, LoraLayer)])
    assert mixer.possible
    with mixer.rows(list(zip(names, rows, strict=True))):
        got = model(x.flatten(0, 1)).view(expected.shape) if flat else model(x)
    torch.testing.assert_close(got, expected)
    for one, other in zip(torch.autograd.grad(got, tensors, weights), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
