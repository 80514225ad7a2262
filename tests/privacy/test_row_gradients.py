"""Gradients by row equal those of each row computed alone."""

import copy

import pytest
import torch
from pairs import make_batch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model
from torch import Tensor, nn

from flower_split.errors import AdapterError
from flower_split.privacy import ClippedSum, PrivacySettings, RowGradients

SETTINGS = PrivacySettings(noise=1.0, clip=0.5, expected_batch=4)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    found = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
    )
    return found.mean(1)


def lora_model() -> nn.Module:
    torch.manual_seed(3)
    model = get_peft_model(tiny_model(), LoraConfig(r=3, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def one_by_one(model: nn.Module, batch: dict[str, Tensor]) -> list[list[Tensor]]:
    found = []
    for row in range(len(batch["input_ids"])):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        logits = model(**{k: v for k, v in alone.items() if k != "labels"}).logits
        loss = row_losses(logits, alone["input_ids"]).sum()
        found.append(list(torch.autograd.grad(loss, trained(model))))
    return found


def test_rows_of_a_lora_model_are_those_computed_alone() -> None:
    model, batch = lora_model(), make_batch(4, 7)
    batch.pop("labels")
    expected = one_by_one(model, batch)
    rows = RowGradients(model, trained(model))
    record = rows.record(4, torch.device("cpu"))
    with rows.recording(record):
        logits = model(**batch).logits
    rows.differentiate([row_losses(logits, batch["input_ids"]).sum()], [None], [], record)
    squared = torch.stack([sum(g.double().square().sum() for g in own) for own in expected])
    assert torch.allclose(record.squared_norms(), squared, rtol=1e-5)
    factors = torch.tensor([1.0, 0.5, 0.0, 0.25])
    weighted = record.weighted(factors)
    for place, parameter in enumerate(trained(model)):
        wanted = sum(f * own[place] for f, own in zip(factors, expected, strict=True))
        assert torch.allclose(weighted[parameter], wanted, rtol=1e-4, atol=1e-6)
        assert parameter.grad is None


def test_a_watched_model_computes_the_same_outside_of_records() -> None:
    model, batch = lora_model(), make_batch(2, 5)
    plain = model(**batch)
    plain.loss.backward()
    before = [parameter.grad.clone() for parameter in trained(model)]
    model.zero_grad()
    rows = RowGradients(model, trained(model))
    model(**batch).loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(trained(model), before, strict=True))
    rows.close()
    record = rows.record(2, torch.device("cpu"))
    with rows.recording(record):
        model(**batch).loss.backward()
    assert not record.squared_norms().any()


def test_biases_and_rows_without_tokens() -> None:
    torch.manual_seed(0)
    model, given = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    rows = RowGradients(model, model.parameters())
    record = rows.record(5, given.device)
    with rows.recording(record):
        ends = model(given).square().sum()
    rows.differentiate([ends], [None], [], record)
    squared = []
    for row in given:
        own = torch.autograd.grad(model(row[None]).square().sum(), list(model.parameters()))
        squared.append(sum(g.double().square().sum() for g in own))
    assert torch.allclose(record.squared_norms(), torch.stack(squared), rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
        nn.Sequential(nn.Conv1d(1, 1, 1)),
    ],
)
def test_what_is_no_linear_module_is_refused_by_name(model: nn.Module) -> None:
    with pytest.raises(AdapterError, match=r"\d\.weight is trained and is a \w+'s: .* peft.type"):
        RowGradients(model, model.parameters())


def test_a_weight_of_two_modules_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(AdapterError, match="shared by several modules"):
        RowGradients(model, model.parameters())


def test_a_module_that_mixes_rows_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2))
    rows = RowGradients(model, model.parameters())
    record = rows.record(4, torch.device("cpu"))
    with rows.recording(record), pytest.raises(AdapterError, match=r"1 is given \(8, 3\).*mixes"):
        model(torch.randn(4, 2, 3))


def test_a_weight_that_is_used_past_its_module_is_found_out() -> None:
    class Past(nn.Linear):
        def forward(self, given: Tensor) -> Tensor:
            return super().forward(given)

    linear = Past(3, 3, bias=False)
    rows = RowGradients(linear, linear.parameters())
    record = rows.record(2, torch.device("cpu"))
    given = torch.randn(2, 3)
    with rows.recording(record):
        ends = (linear(given) + given @ linear.weight).sum()
    with pytest.raises(AdapterError, match="do not add up to its gradient"):
        rows.differentiate([ends], [None], [], record)


def test_the_sum_has_noise_of_the_agreed_deviation_also_without_an_example() -> None:
    weight = nn.Parameter(torch.zeros(200, 200))
    total = ClippedSum([weight], PrivacySettings(noise=2.0, clip=0.5, expected_batch=4))
    (one,), (two,) = total.noisy_mean(), total.noisy_mean()
    assert one.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.03)
    assert not torch.equal(one, two) and abs(float((one * two).mean())) < 2e-3


def test_settings_that_bound_nothing_are_refused() -> None:
    for given in ({"noise": 1.0}, {"noise": 1.0, "clip": 1.0}, {"clip": 1.0, "expected_batch": 2}):
        with pytest.raises(ValueError, match="needs noise, a bound"):
            PrivacySettings(**given)  # type: ignore[arg-type]
    assert not PrivacySettings().is_on
    assert copy.copy(SETTINGS).is_on
