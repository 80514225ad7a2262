"""What is recorded is what a run sends: the stock model's states and gradients, as they arrive."""

from pathlib import Path

import pytest
import torch
from audit_subject import opened
from tiny_checkpoint import save_texts
from transformers import AutoModelForCausalLM

from flower_split.audit.settings import AuditSettings
from flower_split.audit.texts import load_texts
from flower_split.config.wire import WireConfig
from flower_split.errors import CutError, DataError
from flower_split.segments import load_tokenizer, table_sizes


@pytest.mark.medium
def test_a_recording_is_what_the_trunk_is_sent(tmp_path: Path) -> None:
    subject, texts = opened(tmp_path)
    victims = texts.victims
    assert len(victims) == 10 and len(texts.public) == 20
    with subject.cut(2, 1) as model:
        seen = model.record(victims, WireConfig(), seed=0)
        again = model.record(victims, WireConfig(), seed=0)
        coarse = model.record(victims, WireConfig.uniform("nf4"), seed=0)
        alone = model.record_h1(victims, WireConfig(), seed=0)
        noisy = model.record(victims, WireConfig(h1_clip=1.0, h1_noise=1.0), seed=0)
        with model.tops() as top:
            assert seen.h2 is not None
            logits = top(seen.h2[:5], seen.mask[:5])
    assert seen.digest == again.digest and noisy.digest != seen.digest
    assert torch.equal(alone.h1, seen.h1) and torch.equal(seen.mask, victims.mask)
    gap = (coarse.h1 - seen.h1).norm() / seen.h1.norm()
    assert 0.01 < gap < 0.2 and noisy.g2 is not None and seen.groups == ((0, 5), (5, 10))

    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    batch = victims.batch(range(5))
    output = stock(**batch, output_hidden_states=True)
    h1, h2 = output.hidden_states[2], output.hidden_states[3]
    h2.retain_grad()
    output.loss.backward()
    real = batch["attention_mask"].bool()
    length = real.shape[1]
    assert seen.g2 is not None and h2.grad is not None
    assert torch.equal(seen.h1[:5, :length][real], h1[real])
    assert torch.equal(seen.g2[:5, :length], h2.grad)
    assert torch.allclose(logits[:, :length][real], output.logits[real], atol=1e-5)


def test_too_little_data_and_a_cut_that_is_not_there(tmp_path: Path) -> None:
    subject, _ = opened(tmp_path)
    with pytest.raises(CutError):
        subject.check_cut(3, 1)
    few = save_texts(tmp_path / "few.jsonl", 5)
    model = subject.config.model.name
    for given in ({"data": str(few)}, {"public": str(few)}):
        with pytest.raises(DataError, match="name more"):
            load_texts(
                subject.config,
                AuditSettings(documents=10, tokens=8),
                load_tokenizer(model),
                table_sizes(model),
                **{"data": str(tmp_path / "texts.jsonl"), **given},
            )
