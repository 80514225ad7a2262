"""The stock Hugging Face Trainer trains a split model as it trains the uncut one."""

import warnings
from pathlib import Path

import pytest
import torch
from pairs import make_pair
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup

from flower_split.adapters import read_state
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW


class _Sequences(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 97, (10,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def _arguments(folder: Path, max_grad_norm: float) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        max_grad_norm=max_grad_norm,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        seed=5,
        disable_tqdm=True,
        logging_strategy="no",
    )


@pytest.mark.medium
def test_trainer_equals_the_uncut_trainer_to_the_bit(tmp_path: Path) -> None:
    pair = make_pair(optimizer=OptimizerSettings(max_grad_norm=0.1))
    plain = torch.optim.AdamW(
        [p for p in pair.whole.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    split = SplitAdamW(pair.client, lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model, optimizer, norm in ((pair.whole, plain, 0.1), (pair.client, split, 0.0)):
            Trainer(
                model=model,
                args=_arguments(tmp_path, norm),
                train_dataset=_Sequences(),
                optimizers=(optimizer, get_linear_schedule_with_warmup(optimizer, 2, 6)),
            ).train()
    expected = read_state(pair.whole)
    after = read_state(pair.client) | pair.trained_trunk()
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name
        assert not torch.equal(tensor, pair.state[name]), name
